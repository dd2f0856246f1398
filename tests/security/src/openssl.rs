//! `openssl s_client` as a client that can do what rustls does not: old versions, weak ciphers,
//! renegotiation.
//!
//! What must hold: the program ends with the call, whatever the server does.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one run may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `s_client` by STARTTLS with these options and `input` on its standard input, of which it
/// obeys lines with one letter (`R`: renegotiate, `Q`: end). Gives back all that it says, `None`
/// when it is not installed.
///
/// # Panics
/// When it cannot be run, or does not end in time.
pub fn s_client(at: SocketAddr, options: &[&str], input: &str) -> Option<String> {
    let mut child = match Command::new("openssl")
        .args(["s_client", "-connect", &at.to_string(), "-starttls", "xmpp", "-xmpphost", "localhost"])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Not by a macro: what those print is shown only when the test fails.
            let _ = writeln!(std::io::stderr(), "LEFT OUT: attacks by openssl: apt-get install openssl");
            return None;
        }
        Err(error) => panic!("openssl: {error}"),
    };
    let stdin = child.stdin.take().map(|mut stdin| {
        // A client that was refused may have ended already.
        let _ = stdin.write_all(input.as_bytes());
        stdin
    });
    // Its input stays open: at the end of it, it would end before the server's answer.
    let held = stdin.filter(|_| !input.is_empty());
    let readers = [child.stdout.take().map(read_all), child.stderr.take().map(read_all)];
    wait(&mut child);
    drop(held);
    Some(readers.into_iter().flatten().map(|reader| reader.join().unwrap_or_default()).collect())
}

fn read_all(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child) {
    let end = Instant::now() + PATIENCE;
    while let Ok(None) = child.try_wait() {
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("openssl did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
