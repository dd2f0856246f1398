//! Values of single keys: what may be written, how it is read, and how it is written back.
//!
//! What must hold: [`Leaf::toml`] writes what [`Leaf::parse`] reads to the same value; a value
//! that cannot be read leaves a [`Fault`], and every wrong element of a list leaves its own.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::units::{self, Size};

/// A value with its place in the text of its source.
pub(crate) type Value<'i> = Spanned<DeValue<'i>>;

/// The smallest and the largest value of a key.
pub(crate) type Bounds<'a, T> = Option<&'a RangeInclusive<T>>;

/// Something wrong inside one value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where, in the text of the source.
    pub(crate) span: Range<usize>,
    /// What was found and what was expected.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) help: Option<String>,
}

impl Fault {
    /// "found VALUE, expected EXPECTED".
    pub(crate) fn unexpected(value: &Value<'_>, expected: &str, help: Option<&str>) -> Self {
        Self {
            span: value.span(),
            message: format!("found {}, expected {expected}", describe(value.get_ref())),
            help: help.map(str::to_owned),
        }
    }
}

/// The value of a key.
pub(crate) trait Leaf: Clone {
    /// What may be written, as the rest of "expected ...".
    fn expected(bounds: Bounds<'_, Self>) -> String;

    /// What a list of such values holds, as the rest of "a list of ...".
    fn plural() -> &'static str;

    /// The value, when it is one of this kind.
    fn read(value: &Value<'_>) -> Option<Self>;

    /// The value as TOML.
    fn toml(&self) -> String;

    /// What helps people who wrote something that is no value of this kind.
    fn help() -> Option<&'static str> {
        None
    }

    /// True when the value is within bounds; kinds without an order have none.
    fn is_within(&self, _bounds: &RangeInclusive<Self>) -> bool {
        true
    }

    /// Reads a value within its bounds, or says what is wrong with it.
    fn parse(value: &Value<'_>, bounds: Bounds<'_, Self>, faults: &mut Vec<Fault>) -> Option<Self> {
        let read = Self::read(value);
        let help = if read.is_none() { Self::help() } else { None };
        let good = read.filter(|v| bounds.is_none_or(|b| v.is_within(b)));
        if good.is_none() {
            faults.push(Fault::unexpected(value, &Self::expected(bounds), help));
        }
        good
    }

    /// This value where an earlier source gave another: it replaces it.
    #[must_use]
    fn over(self, _earlier: Self) -> Self {
        self
    }
}

/// A value as "found ..." names it.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let short: String = text.chars().take(60).collect();
            let dots = if short.len() < text.len() { "..." } else { "" };
            format!("the string \"{short}{dots}\"")
        }
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// A string as TOML.
pub(crate) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Leaf for bool {
    fn expected(_: Bounds<'_, Self>) -> String {
        "true or false".to_owned()
    }

    fn plural() -> &'static str {
        "true and false"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        value.get_ref().as_bool()
    }

    fn toml(&self) -> String {
        self.to_string()
    }
}

impl Leaf for u32 {
    fn expected(bounds: Bounds<'_, Self>) -> String {
        match bounds {
            Some(b) => format!("a whole number from {} to {}", b.start(), b.end()),
            None => "a whole number, 0 or more".to_owned(),
        }
    }

    fn plural() -> &'static str {
        "whole numbers"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        value.get_ref().as_integer().and_then(|n| Self::from_str_radix(n.as_str(), n.radix()).ok())
    }

    fn is_within(&self, bounds: &RangeInclusive<Self>) -> bool {
        bounds.contains(self)
    }

    fn toml(&self) -> String {
        self.to_string()
    }
}

impl Leaf for Size {
    fn expected(bounds: Bounds<'_, Self>) -> String {
        match bounds {
            Some(b) => format!("a size from {} to {}", b.start(), b.end()),
            None => "a size".to_owned(),
        }
    }

    fn plural() -> &'static str {
        "sizes"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix()).ok().map(Size),
            DeValue::String(text) => Self::parse(text),
            _ => None,
        }
    }

    fn is_within(&self, bounds: &RangeInclusive<Self>) -> bool {
        bounds.contains(self)
    }

    fn toml(&self) -> String {
        quote(&self.to_string())
    }

    fn help() -> Option<&'static str> {
        Some("write a size as \"256 KiB\"; units are B, KiB, MiB and GiB, and a number alone counts bytes")
    }
}

impl Leaf for Duration {
    fn expected(bounds: Bounds<'_, Self>) -> String {
        match bounds {
            Some(b) => format!(
                "a duration from {} to {}",
                units::show_duration(*b.start()),
                units::show_duration(*b.end())
            ),
            None => "a duration".to_owned(),
        }
    }

    fn plural() -> &'static str {
        "durations"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        value.get_ref().as_str().and_then(units::parse_duration)
    }

    fn is_within(&self, bounds: &RangeInclusive<Self>) -> bool {
        bounds.contains(self)
    }

    fn toml(&self) -> String {
        quote(&units::show_duration(*self))
    }

    fn help() -> Option<&'static str> {
        Some("write a duration as \"30s\"; units are ms, s, m, h and d")
    }
}

impl Leaf for PathBuf {
    fn expected(_: Bounds<'_, Self>) -> String {
        "a path, as a string".to_owned()
    }

    fn plural() -> &'static str {
        "paths"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        let text = value.get_ref().as_str()?;
        (!text.is_empty() && !text.contains('\0')).then(|| Self::from(text))
    }

    fn toml(&self) -> String {
        quote(&self.to_string_lossy())
    }
}

impl<T: Leaf> Leaf for Vec<T> {
    fn expected(_: Bounds<'_, Self>) -> String {
        format!("a list of {}", T::plural())
    }

    fn plural() -> &'static str {
        "lists"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        Self::parse(value, None, &mut Vec::new())
    }

    fn toml(&self) -> String {
        let elements: Vec<String> = self.iter().map(Leaf::toml).collect();
        format!("[{}]", elements.join(", "))
    }

    fn help() -> Option<&'static str> {
        Some("a list is written in brackets, also with one element: [\"...\"]")
    }

    fn parse(value: &Value<'_>, bounds: Bounds<'_, Self>, faults: &mut Vec<Fault>) -> Option<Self> {
        let Some(elements) = value.get_ref().as_array() else {
            faults.push(Fault::unexpected(value, &Self::expected(bounds), Self::help()));
            return None;
        };
        let parsed: Vec<Option<T>> = elements.iter().map(|element| T::parse(element, None, faults)).collect();
        parsed.into_iter().collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Reads TOML text as a value of the kind.
    pub(crate) fn parse<T: Leaf>(text: &str, bounds: Bounds<'_, T>) -> Result<T, Vec<Fault>> {
        let value = DeValue::parse(text).unwrap();
        let mut faults = Vec::new();
        T::parse(&value, bounds, &mut faults).ok_or(faults)
    }

    /// The only message that reading the text gives.
    pub(crate) fn message<T: Leaf + std::fmt::Debug>(text: &str, bounds: Bounds<'_, T>) -> String {
        let faults = parse(text, bounds).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].message.clone()
    }

    /// Asserts that a value is written and read back.
    pub(crate) fn round_trip<T: Leaf + PartialEq + std::fmt::Debug>(value: &T) {
        assert_eq!(parse::<T>(&value.toml(), None).as_ref(), Ok(value));
    }

    #[test]
    fn values_outside_their_bounds_are_named_with_them() {
        assert_eq!(parse::<u32>("0x10", Some(&(1..=16))), Ok(16));
        assert_eq!(
            message::<u32>("17", Some(&(1..=16))),
            "found the number 17, expected a whole number from 1 to 16"
        );
        assert_eq!(
            message::<Size>("\"1 GiB\"", Some(&(Size(1)..=Size::mib(16)))),
            "found the string \"1 GiB\", expected a size from 1 B to 16 MiB"
        );
        assert_eq!(
            message::<Duration>("\"2h\"", Some(&(Duration::from_secs(1)..=Duration::from_secs(3600)))),
            "found the string \"2h\", expected a duration from 1s to 1h"
        );
    }

    #[test]
    fn help_is_for_the_wrong_notation_only() {
        let bounds = Size(1)..=Size(2);
        assert!(parse::<Size>("\"1 KB\"", Some(&bounds)).unwrap_err()[0].help.is_some());
        assert!(parse::<Size>("3", Some(&bounds)).unwrap_err()[0].help.is_none());
        assert!(parse::<Duration>("30", None).unwrap_err()[0].help.is_some());
    }

    #[test]
    fn wrong_types_are_named() {
        for (text, found) in [
            ("\"yes\"", "the string \"yes\""),
            ("-1", "the number -1"),
            ("0x1F", "the number 0x1F"),
            ("1.5", "the number 1.5"),
            ("1979-05-27", "a date"),
            ("[]", "a list"),
            ("{}", "a table"),
        ] {
            assert_eq!(message::<bool>(text, None), format!("found {found}, expected true or false"));
        }
        assert_eq!(message::<u32>("-1", None), "found the number -1, expected a whole number, 0 or more");
        assert_eq!(message::<PathBuf>("\"\"", None), "found the string \"\", expected a path, as a string");
        assert!(message::<bool>(&format!("\"{}\"", "x".repeat(100)), None).contains("xxx...\""));
    }

    #[test]
    fn every_wrong_element_is_named() {
        let faults = parse::<Vec<u32>>("[1, \"a\", 2, -3]", None).unwrap_err();
        assert_eq!(faults.iter().map(|f| f.span.start).collect::<Vec<_>>(), [4, 12]);
        assert_eq!(message::<Vec<u32>>("1", None), "found the number 1, expected a list of whole numbers");
    }

    #[test]
    fn values_are_written_as_they_are_read() {
        round_trip(&true);
        round_trip(&7_u32);
        round_trip(&Size::kib(256));
        round_trip(&Duration::from_secs(90));
        round_trip(&PathBuf::from("a\"b\\c\nd"));
        round_trip(&vec![Size(1), Size(2)]);
    }
}
