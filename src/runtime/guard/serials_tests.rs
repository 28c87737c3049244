//! What the record of serials lets pass, and what it makes of its own loss.

use super::*;
use std::os::unix::fs::PermissionsExt;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn store(test: &str) -> Store {
    let directory =
        std::env::temp_dir().join(format!("attestrun-serials-{test}-{}", std::process::id()));
    fs::remove_dir_all(&directory).ok();
    Store { directory }
}

fn claimed(name: &'static str, serial: u64) -> Claimed<'static> {
    Claimed {
        tenant: "spiffe://a.example/tenant/t",
        name,
        seen: Seen {
            serial,
            issued_at: UnixTime::from_secs(1_700_000_000),
        },
    }
}

fn refused(store: &Store, claimed: Claimed<'_>, now: UnixTime) -> String {
    store.advance(claimed, now).unwrap().unwrap_err()
}

#[test]
fn refuse_lower_serial_than_seen() {
    let store = store("lower");
    store.set_up(false).unwrap();
    let pass = |claimed| store.advance(claimed, NOW).unwrap().unwrap();
    pass(claimed("a", 5));
    pass(claimed("a", 5));
    assert!(refused(&store, claimed("a", 4), NOW).contains("serial 5"));
    pass(claimed("a", 9));
    assert!(refused(&store, claimed("a", 8), NOW).contains("serial 9"));
    // names and tenants count for themselves
    pass(claimed("b", 1));
    pass(Claimed {
        tenant: "spiffe://b.example/tenant/t",
        ..claimed("a", 1)
    });
    // a refusal leaves no trace
    pass(claimed("a", 9));
    fs::remove_dir_all(&store.directory).unwrap();
}

#[test]
fn refuse_a_clock_that_was_set_back() {
    let store = store("clock");
    store.set_up(false).unwrap();
    store.advance(claimed("a", 1), NOW).unwrap().unwrap();
    let before = UnixTime::from_secs(1_600_000_000);
    assert!(refused(&store, claimed("b", 1), before).contains("clock"));
    fs::remove_dir_all(&store.directory).unwrap();
}

#[test]
fn a_lost_or_corrupt_record_is_no_first_time() {
    let store = store("lost");
    assert!(store.advance(claimed("a", 1), NOW).is_err(), "never set up");
    store.set_up(false).unwrap();
    store.advance(claimed("a", 7), NOW).unwrap().unwrap();
    store.set_up(true).unwrap();
    assert!(refused(&store, claimed("a", 6), NOW).contains("serial 7"));

    let good = fs::read(store.path()).unwrap();
    for bad in [
        &b""[..],
        b"{}",
        &good[..good.len() / 2],
        b"{\"version\":2,\"lists\":{}}",
    ] {
        fs::write(store.path(), bad).unwrap();
        let error = format!("{:#}", store.advance(claimed("a", 8), NOW).unwrap_err());
        assert!(error.contains("serials.json"), "{error}");
        assert!(store.set_up(true).is_err());
    }
    fs::write(store.path(), &good).unwrap();
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(store.advance(claimed("a", 8), NOW).is_err());
    fs::remove_file(store.path()).unwrap();
    std::os::unix::fs::symlink("/dev/null", store.path()).unwrap();
    assert!(store.advance(claimed("a", 8), NOW).is_err());
    fs::remove_file(store.path()).unwrap();
    assert!(store.advance(claimed("a", 8), NOW).is_err());
    let error = format!("{:#}", store.set_up(true).unwrap_err());
    assert!(error.contains("backup"), "{error}");
    fs::remove_dir_all(&store.directory).unwrap();
}

/// What a writer leaves that was killed before its rename.
#[test]
fn a_half_written_successor_changes_nothing() {
    let store = store("half");
    store.set_up(false).unwrap();
    store.advance(claimed("a", 3), NOW).unwrap().unwrap();
    fs::write(store.directory.join(".serials.new"), b"{\"vers").unwrap();
    assert!(refused(&store, claimed("a", 2), NOW).contains("serial 3"));
    store.advance(claimed("a", 4), NOW).unwrap().unwrap();
    assert!(refused(&store, claimed("a", 3), NOW).contains("serial 4"));
    fs::remove_dir_all(&store.directory).unwrap();
}

/// Many guards at once: the record never goes back, and one of two that race wins.
#[test]
fn guards_that_race_leave_the_highest() {
    let store = store("race");
    store.set_up(false).unwrap();
    std::thread::scope(|scope| {
        for first in 1..=4 {
            let store = &store;
            scope.spawn(move || {
                for step in 0..20 {
                    let claimed = claimed("a", first + step * 4);
                    // refused or not: the others may be ahead
                    drop(store.advance(claimed, NOW).unwrap());
                }
            });
        }
    });
    assert!(refused(&store, claimed("a", 79), NOW).contains("serial 80"));
    fs::remove_dir_all(&store.directory).unwrap();
}
