use super::*;

fn limits(address: u32, account: u32) -> FailureLimits {
    FailureLimits {
        address: Bucket { burst: address, refill: Duration::from_secs(10) },
        account: Bucket { burst: account, refill: Duration::from_secs(60) },
        ..FailureLimits::default()
    }
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// Fails `n` times; the number of attempts that were let through.
fn fail(tracker: &Arc<FailureTracker>, from: &str, account: &str, n: usize, now: Instant) -> usize {
    (0..n).filter(|_| tracker.begin(ip(from), "localhost", account, now).map(Attempt::failed).is_ok()).count()
}

fn allowed(tracker: &Arc<FailureTracker>, from: &str, account: &str, now: Instant) -> bool {
    tracker.begin(ip(from), "localhost", account, now).map(Attempt::abandoned).is_ok()
}

#[test]
fn a7_a_connection_is_closed_at_the_fifth_failure() {
    let mut connection = FailureLimits::default().connection();
    let closes: Vec<bool> = (0..6).map(|_| connection.failed()).collect();
    assert_eq!(closes, [false, false, false, false, true, true]);
}

#[test]
fn a7_an_account_is_refused_from_the_address_that_failed_and_from_no_other() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(100, 10));
    assert_eq!(fail(&tracker, "192.0.2.1", "victim", 50, now), 10);
    let refused = tracker.begin(ip("192.0.2.1"), "localhost", "victim", now).unwrap_err();
    assert_eq!(refused.retry_after, Duration::from_secs(60));
    assert!(allowed(&tracker, "192.0.2.2", "victim", now), "no lock of the account everywhere");
    assert!(allowed(&tracker, "192.0.2.1", "other", now), "no lock of the address after one account");
}

#[test]
fn a7_a_thousand_failures_from_many_addresses_lock_nobody_out() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&FailureLimits::default());
    for i in 0..1000_u32 {
        let from = format!("10.0.{}.{}", i / 250, i % 250);
        assert_eq!(fail(&tracker, &from, "victim", 1, now), 1);
    }
    assert!(allowed(&tracker, "192.0.2.1", "victim", now));
}

#[test]
fn a7_an_address_that_tries_many_accounts_is_refused() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(20, 10));
    let let_through: usize = (0..50).map(|i| fail(&tracker, "192.0.2.1", &format!("user{i}"), 1, now)).sum();
    assert_eq!(let_through, 20);
    assert!(tracker.check_address(ip("192.0.2.1"), now).is_err());
    assert!(!allowed(&tracker, "192.0.2.1", "anyone", now));
    assert!(tracker.check_address(ip("192.0.2.2"), now).is_ok());
}

#[test]
fn a7_tokens_come_back_with_time() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(100, 10));
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 50, now), 10);
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 5, now + Duration::from_secs(59)), 0);
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 5, now + Duration::from_secs(60)), 1);
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 50, now + Duration::from_secs(3600)), 10);
}

#[test]
fn a7_success_resets_the_account_but_not_the_address() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(12, 10));
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 9, now), 9);
    tracker.begin(ip("192.0.2.1"), "localhost", "me", now).unwrap().succeeded();
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 50, now), 3, "three of twelve are left to the address");
}

#[test]
fn a7_guesses_in_parallel_count_as_guesses_in_a_row() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(100, 10));
    let running: Vec<_> =
        (0..50).filter_map(|_| tracker.begin(ip("192.0.2.1"), "localhost", "me", now).ok()).collect();
    assert_eq!(running.len(), 10);
    drop(running);
    assert!(!allowed(&tracker, "192.0.2.1", "me", now));
}

/// An address can only be told to have failed afterwards; what was over the limit by then is not
/// held against it for longer than an empty bucket would be.
#[test]
fn failures_in_parallel_do_not_lock_an_address_for_longer_than_the_limit_says() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(20, 10));
    let running: Vec<_> = (0..50)
        .map(|i| tracker.begin(ip("192.0.2.1"), "localhost", &format!("user{i}"), now).unwrap())
        .collect();
    drop(running);
    let refused = tracker.check_address(ip("192.0.2.1"), now).unwrap_err();
    assert_eq!(refused.retry_after, Duration::from_secs(10));
    assert_eq!(tracker.check_address(ip("192.0.2.1"), now + refused.retry_after), Ok(()));
}

#[test]
fn an_abandoned_attempt_costs_nothing() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(5, 5));
    for _ in 0..100 {
        assert!(allowed(&tracker, "192.0.2.1", "me", now));
    }
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 50, now), 5);
}

#[test]
fn a7_addresses_of_one_ipv6_network_are_one() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(100, 10));
    let let_through: usize = (0..50).map(|i| fail(&tracker, &format!("2001:db8::{i}"), "me", 1, now)).sum();
    assert_eq!(let_through, 10);
    assert!(allowed(&tracker, "2001:db8:0:1::1", "me", now));
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 10, now), 10);
    assert!(!allowed(&tracker, "::ffff:192.0.2.1", "me", now), "the mapped form is the same address");
    assert!(allowed(&tracker, "192.0.2.2", "me", now), "IPv4 addresses stand for themselves");
}

#[test]
fn the_same_name_at_two_hosts_is_two_accounts() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&limits(100, 1));
    assert_eq!(fail(&tracker, "192.0.2.1", "me", 5, now), 1);
    assert!(tracker.begin(ip("192.0.2.1"), "other", "me", now).is_ok());
}

#[test]
fn tables_are_bounded_and_keep_the_worst_offenders() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&FailureLimits { max_entries: 64, ..limits(100, 10) });
    assert_eq!(fail(&tracker, "192.0.2.1", "victim", 50, now), 10);
    for i in 0..10_000_u32 {
        let from = IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + i));
        tracker.begin(from, "localhost", "x", now + Duration::from_millis(i.into())).unwrap().failed();
        let tables = tracker.lock();
        assert!(tables.addresses.full_at.len() <= 64 && tables.accounts.full_at.len() <= 64);
    }
    assert!(!allowed(&tracker, "192.0.2.1", "victim", now + Duration::from_secs(10)), "forgotten too early");
    assert!(tracker.lock().accounts.full_at.len() > 32, "more was dropped than needed");
}

#[test]
fn buckets_that_are_full_again_make_room_first() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&FailureLimits { max_entries: 4, ..limits(100, 10) });
    for i in 0..4 {
        assert_eq!(fail(&tracker, &format!("10.0.0.{i}"), "x", 1, now), 1);
    }
    let later = now + Duration::from_secs(3600);
    assert_eq!(fail(&tracker, "10.0.1.1", "x", 1, later), 1);
    assert_eq!(tracker.lock().accounts.full_at.len(), 1);
}

#[test]
fn a_table_of_one_entry_works() {
    let now = Instant::now();
    let tracker = FailureTracker::new(&FailureLimits { max_entries: 0, ..limits(100, 2) });
    assert_eq!(fail(&tracker, "10.0.0.1", "x", 9, now), 2);
    assert_eq!(fail(&tracker, "10.0.0.2", "x", 9, now), 2);
    assert_eq!(tracker.lock().accounts.full_at.len(), 1);
}

#[test]
fn disabled_limits_refuse_nothing_and_keep_nothing() {
    let now = Instant::now();
    let limits = FailureLimits::disabled();
    let tracker = FailureTracker::new(&limits);
    assert_eq!(fail(&tracker, "10.0.0.1", "x", 10_000, now), 10_000);
    assert!(tracker.lock().accounts.full_at.is_empty());
    let mut connection = limits.connection();
    assert!((0..10_000).all(|_| !connection.failed()));
}
