//! What the machine itself makes of a round trip, while a test measures those of a server.
//!
//! A thread that does nothing but echo stands for a server that is never busy. Asked over
//! loopback every few milliseconds, it shows when the machine gave nobody its cores: then the
//! server under test could not have answered either, and is not to blame.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often the echo is asked.
const INTERVAL: Duration = Duration::from_millis(10);

/// The measurement, which goes on until [`Pace::end`] or the drop.
pub struct Pace {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Stalls>>,
}

/// The round trips, in order: when each was due, and when it was over. A hundred a second are kept.
#[derive(Debug, Clone, Default)]
pub struct Stalls(Vec<(Instant, Instant)>);

impl Stalls {
    /// How much of the time from `began` to `ended` an echo was kept waiting.
    pub fn taken(&self, began: Instant, ended: Instant) -> Duration {
        let met = self.0.iter().filter(|(from, to)| *from < ended && *to > began);
        met.map(|(from, to)| *to.min(&ended) - *from.max(&began)).sum()
    }

    /// What 99 of 100 round trips stayed below.
    pub fn p99(&self) -> Duration {
        let mut all: Vec<_> = self.0.iter().map(|(from, to)| *to - *from).collect();
        all.sort_unstable();
        all.get((all.len() * 99 / 100).max(1) - 1).copied().unwrap_or_default()
    }
}

impl Pace {
    /// Begins to measure.
    ///
    /// # Errors
    /// When there is no port or thread for it.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("pace"))?;
        let at = listener.local_addr().map_err(Error::io("pace"))?;
        let asking = TcpStream::connect(at).map_err(Error::io("pace"))?;
        let (echoing, _) = listener.accept().map_err(Error::io("pace"))?;
        for stream in [&asking, &echoing] {
            stream.set_nodelay(true).map_err(Error::io("pace"))?;
        }
        let spawn = |name: &str| std::thread::Builder::new().name(name.into());
        // Ends with the connection.
        spawn("echo").spawn(move || echo(echoing)).map_err(Error::io("pace"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = spawn("pace").spawn(move || ask(asking, &stopping)).map_err(Error::io("pace"))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops and returns what was measured.
    pub fn end(mut self) -> Stalls {
        self.join().unwrap_or_default()
    }

    fn join(&mut self) -> Option<Stalls> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.join();
    }
}

fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
}

fn ask(mut stream: TcpStream, stop: &AtomicBool) -> Stalls {
    let mut stalls = Stalls::default();
    let mut byte = [0];
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).is_err() {
            break;
        }
        let now = Instant::now();
        // From when it was due: a thread that is woken late was kept waiting as well.
        stalls.0.push((due, now));
        due = now + INTERVAL;
        std::thread::sleep(INTERVAL);
    }
    stalls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_under_way_meets_a_stall() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let stalls = Stalls(vec![(at(100), at(150)), (at(200), at(500))]);
        assert_eq!(stalls.taken(at(0), at(100)), Duration::ZERO);
        assert_eq!(stalls.taken(at(140), at(180)), Duration::from_millis(10));
        assert_eq!(stalls.taken(at(110), at(120)), Duration::from_millis(10));
        assert_eq!(stalls.taken(at(0), at(1000)), Duration::from_millis(350));
        assert_eq!(stalls.taken(at(500), at(1000)), Duration::ZERO);
        assert_eq!((stalls.p99(), Stalls::default().p99()), (Duration::from_millis(50), Duration::ZERO));
    }

    #[test]
    fn it_measures_and_ends() {
        let pace = Pace::start().unwrap();
        let began = Instant::now();
        std::thread::sleep(3 * INTERVAL);
        let stalls = pace.end();
        assert!(stalls.taken(began, Instant::now()) < Duration::from_secs(5), "{stalls:?}");
    }
}
