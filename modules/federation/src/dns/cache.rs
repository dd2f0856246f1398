//! Answers that are kept: as long as they hold, within bounds, and so many of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::{Name, RecordType};

use super::order::Service;

/// The most answers that are kept. An answer is a few kilobytes at most: names and addresses are cut to
/// those that are tried.
const MOST: usize = 2048;
/// An answer is kept for so long even when its records say less: dialling asks for the same again.
const SHORTEST: Duration = Duration::from_secs(5);
/// An answer is kept for no longer than this, whatever its records say: servers move.
const LONGEST: Duration = Duration::from_secs(3600);
/// That there is nothing is kept for so long (SECURITY M11).
const NOTHING: Duration = Duration::from_secs(60);

/// What DNS has said.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// SRV records; those whose target is `.` among them.
    Services(Arc<[Service]>),
    /// Addresses.
    Addresses(Arc<[IpAddr]>),
    /// There is no such name, or it has no such record.
    Nothing,
}

/// Answers to questions for a name and a type.
#[derive(Default)]
pub(crate) struct Cache {
    kept: HashMap<(Name, RecordType), (Answer, Instant)>,
}

impl Cache {
    /// The answer, when one is kept that still holds.
    pub(crate) fn get(&self, name: &Name, kind: RecordType, now: Instant) -> Option<Answer> {
        let (answer, until) = self.kept.get(&(name.clone(), kind))?;
        (now < *until).then(|| answer.clone())
    }

    /// Keeps an answer whose records hold for `ttl`. When there is no room, what no longer holds goes; if all
    /// does, whatever would go next.
    pub(crate) fn put(&mut self, name: Name, kind: RecordType, answer: Answer, ttl: Duration, now: Instant) {
        let key = (name, kind);
        if self.kept.len() >= MOST && !self.kept.contains_key(&key) {
            self.kept.retain(|_, (_, until)| now < *until);
            if self.kept.len() >= MOST
                && let Some(next) =
                    self.kept.iter().min_by_key(|(_, (_, until))| *until).map(|(k, _)| k.clone())
            {
                self.kept.remove(&next);
            }
        }
        let time = match answer {
            Answer::Nothing => NOTHING,
            _ => ttl.clamp(SHORTEST, LONGEST),
        };
        self.kept.insert(key, (answer, now + time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Name {
        Name::from_ascii(format!("n{number}.example.")).unwrap()
    }

    fn addresses() -> Answer {
        Answer::Addresses(Arc::new([]))
    }

    /// SECURITY M11: TTL 0, and the 60 s of what is not there.
    #[test]
    fn answers_hold_as_their_records_say_within_bounds() {
        let start = Instant::now();
        for (ttl, answer, seconds) in [
            (0, addresses(), 5),
            (30, addresses(), 30),
            (86400, addresses(), 3600),
            (0, Answer::Nothing, 60),
            (86400, Answer::Nothing, 60),
        ] {
            let mut cache = Cache::default();
            cache.put(name(0), RecordType::A, answer, Duration::from_secs(ttl), start);
            let at = |seconds: u64| cache.get(&name(0), RecordType::A, start + Duration::from_secs(seconds));
            assert!(at(seconds - 1).is_some() && at(seconds).is_none(), "{ttl} s");
            assert!(cache.get(&name(0), RecordType::AAAA, start).is_none(), "another type");
        }
    }

    #[test]
    fn there_are_never_too_many_and_what_goes_first_goes_first() {
        let start = Instant::now();
        let mut cache = Cache::default();
        for number in 0..MOST * 3 {
            let ttl = Duration::from_secs(if number == 0 { 3000 } else { 100 });
            cache.put(name(number), RecordType::A, addresses(), ttl, start);
            assert!(cache.kept.len() <= MOST);
        }
        assert!(cache.get(&name(0), RecordType::A, start).is_some(), "it holds for the longest");
        let later = start + Duration::from_secs(200);
        cache.put(name(MOST * 3), RecordType::A, addresses(), Duration::ZERO, later);
        assert_eq!(cache.kept.len(), 2, "what no longer holds made room");
    }
}
