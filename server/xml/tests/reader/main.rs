//! Tests of the XML reader and the element tree, as one program.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

mod attacks;
mod common;
mod corpus;
mod differential;
mod element;
mod generator;
mod limits;
mod stream;
