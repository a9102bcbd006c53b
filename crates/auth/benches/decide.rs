//! What a decision costs: 10,000 users with ten permissions each, asked about in random order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a benchmark fails by panicking"
)]

use std::time::{Duration, Instant};

use highwater_auth::{Asked, Command, Directory, Identity, Policies};
use highwater_event::SeededRandomness;
use highwater_event::identity::HOME;

const USERS: u64 = 10_000;
const GRANTS: u64 = 10;
const DECISIONS: usize = 200_000;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[(times.len() as f64 * share) as usize].as_nanos() as f64 / 1000.0;
    println!("| {what} | {:.2} | {:.2} | {:.2} |", at(0.5), at(0.99), at(0.999));
}

fn main() {
    let (by, mut directory) = ("operator".into(), Directory::default());
    for user in 0..USERS {
        let user = format!("u{user}");
        let roles = vec!["DataAnalyst".to_owned()];
        let create = Command::CreateUser {
            user: user.clone(),
            email: None,
            tenant: HOME.into(),
            roles,
            sources: vec![],
            unchecked: false,
            service: false,
        };
        directory.apply(&create.into(), &by, 0).unwrap();
        for grant in 0..GRANTS {
            let permission = format!("read@stream:s{grant}");
            let grant = Command::GrantPermission { user: user.clone(), permission };
            directory.apply(&grant.into(), &by, 0).unwrap();
        }
    }
    let policies = Policies::new(&[]).unwrap();
    let chance = SeededRandomness::new(1);
    let ask = |decide: &dyn Fn(&Identity, Asked<'_>) -> bool, users: u64| -> Vec<Duration> {
        (0..DECISIONS)
            .map(|_| {
                let name = format!("u{}", chance.below(users));
                let stream = format!("s{}", chance.below(2 * GRANTS));
                let started = Instant::now();
                let identity = directory.identify_user(&name).unwrap();
                std::hint::black_box(decide(&identity, Asked::on("ingest", "stream", &stream)));
                started.elapsed()
            })
            .collect()
    };
    println!("| look-up of the user and decision | p50 µs | p99 µs | p99.9 µs |\n|---|---|---|---|");
    report(
        "by Cedar, nothing remembered",
        ask(&|identity, asked| policies.decide(identity, asked).allowed, USERS),
    );
    // From nothing: the first of each situation is decided by Cedar among the rest.
    report("as calls ask", ask(&|identity, asked| policies.allows(identity, asked), USERS));
}
