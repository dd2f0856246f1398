//! Takes messages along one of the server's hot paths: `waystation-instructions PATH MESSAGES`. To be
//! run under a program that counts instructions.

use std::process::ExitCode;

use waystation_instructions::{Failure, PATHS};
use waystation_runtime::Allocator;

/// The server's.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without it nobody would learn why.
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("waystation-instructions: {error}\n"),
            );
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<_> = PATHS.iter().map(|path| path.name).collect();
    let usage = || format!("usage: waystation-instructions {} MESSAGES", names.join("|"));
    let [name, messages] = arguments.as_slice() else { return Err(usage().into()) };
    let path = PATHS.iter().find(|path| path.name == *name).ok_or_else(usage)?;
    path.run(messages.parse()?)
}
