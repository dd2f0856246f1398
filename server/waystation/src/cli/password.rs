//! Passwords from people: from the terminal without echo, or from standard input.
//!
//! What must hold: the terminal is as it was before, however the prompt ends; no password is
//! longer than its limit or left behind in a buffer of ours.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use nix::sys::termios::{self, InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use zeroize::Zeroizing;

use super::CliError;
use crate::admin::Password;

/// Longer ones are refused: SASLprep takes 1023 bytes.
const MAX_PASSWORD: usize = 1023;
/// How often two entries may differ.
const TRIES: usize = 3;

/// Asks for a new password, or reads it from standard input.
pub(super) fn new_password(from_stdin: bool, jid: &str) -> Result<Password, CliError> {
    if from_stdin {
        return read_line(&mut io::stdin().lock());
    }
    let no_terminal = |error: io::Error| {
        CliError::Failed(format!(
            "there is no terminal to ask for the password ({error}); use --password-stdin"
        ))
    };
    let tty = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    let mut prompt = Prompt::new(tty).map_err(no_terminal)?;
    for _ in 0..TRIES {
        let first = prompt.ask(&format!("New password for {}: ", super::output::Visible(jid)))?;
        if first.is_empty() {
            prompt.say("The password is empty.")?;
            continue;
        }
        let second = prompt.ask("The same again: ")?;
        if first == second {
            return Ok(Password::new(first.to_string()));
        }
        prompt.say("They differ.")?;
    }
    Err(CliError::Failed("no password was given".to_owned()))
}

/// Reads the only line.
fn read_line(input: &mut impl Read) -> Result<Password, CliError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD + 3));
    let failed = |text: &str| CliError::Failed(format!("standard input: {text}"));
    input
        .take(MAX_PASSWORD as u64 + 3)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error.to_string()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| failed("the password is no text in UTF-8"))?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains('\n') {
        return Err(failed("found more than one line, expected the password alone"));
    }
    if line.is_empty() {
        return Err(failed("found no password, expected one line"));
    }
    if line.len() > MAX_PASSWORD {
        return Err(failed("the password is longer than 1023 bytes"));
    }
    Ok(Password::new(line.to_owned()))
}

/// A terminal that shows nothing of what is typed. Keys that would interrupt are read as
/// characters, so that nothing ends the program before the terminal is set back.
struct Prompt {
    tty: File,
    before: Termios,
}

impl Prompt {
    fn new(tty: File) -> io::Result<Self> {
        let before = termios::tcgetattr(&tty)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(
            LocalFlags::ECHO
                | LocalFlags::ECHONL
                | LocalFlags::ICANON
                | LocalFlags::ISIG
                | LocalFlags::IEXTEN,
        );
        // Enter is a line feed, and ^S does not stop the terminal.
        quiet.input_flags.insert(InputFlags::ICRNL);
        quiet.input_flags.remove(InputFlags::IXON | InputFlags::INLCR | InputFlags::IGNCR);
        quiet.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        quiet.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        // What was typed before was shown; it is thrown away.
        termios::tcsetattr(&tty, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self { tty, before })
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.tty, "{text}")
    }

    /// Reads a line of text. ^C gives it up, backspace and ^U correct it.
    fn ask(&mut self, question: &str) -> Result<Zeroizing<String>, CliError> {
        self.tty.write_all(question.as_bytes())?;
        self.tty.flush()?;
        let line = self.read();
        self.say("")?;
        let line = line?;
        // The text is moved, not copied, so there is one place to wipe.
        String::from_utf8(line.to_vec())
            .map(Zeroizing::new)
            .map_err(|_| CliError::Failed("the password is no text in UTF-8".to_owned()))
    }

    fn read(&mut self) -> Result<Zeroizing<Vec<u8>>, CliError> {
        let mut line = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD));
        let mut key = [0];
        loop {
            if self.tty.read(&mut key)? == 0 {
                return Err(CliError::Failed("the terminal was closed".to_owned()));
            }
            match key[0] {
                b'\n' | b'\r' => return Ok(line),
                // ^C and ^\.
                0x03 | 0x1c => return Err(CliError::Interrupted),
                // ^D ends an empty line as it ends a file.
                0x04 if line.is_empty() => return Err(CliError::Interrupted),
                // Backspace takes a whole character: its last byte and those that continue it.
                0x08 | 0x7f => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
                0x15 => line.clear(),
                byte if byte < 0x20 => {}
                byte if line.len() < MAX_PASSWORD => line.push(byte),
                _ => return Err(CliError::Failed("the password is longer than 1023 bytes".to_owned())),
            }
        }
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        // When this fails the terminal is gone.
        let _ = termios::tcsetattr(&self.tty, SetArg::TCSAFLUSH, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Result<String, String> {
        read_line(&mut &*input).map(|p| p.reveal().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn standard_input_is_one_line() {
        assert_eq!(read(b"secret\n"), Ok("secret".into()));
        assert_eq!(read(b"secret"), Ok("secret".into()));
        assert_eq!(read(b" two words \r\n"), Ok(" two words ".into()));
        assert_eq!(read(&[b'x'; 1023]), Ok("x".repeat(1023)));
        for bad in [&b""[..], b"\n", b"a\nb\n", b"\xff\n", &[b'x'; 1024], &[b'x'; 100_000]] {
            read(bad).unwrap_err();
        }
    }
}
