//! Start on data that is there (`soak --keep` leaves some), and what an idle node takes.

use std::time::{Duration, Instant};

use clap::Args;

use crate::node::Target;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// How often to start.
    #[arg(long, default_value_t = 3)]
    times: u32,
    /// Seconds to watch the last one while it is idle.
    #[arg(long, default_value_t = 60)]
    idle: u64,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    println!("   answers ms  all views up to date ms  RSS MiB  data MiB");
    for time in 1..=arguments.times {
        let started = Instant::now();
        let node = arguments.target.start_again()?;
        node.call("GET", "/healthz", "")?;
        let answers = started.elapsed().as_millis();
        node.settle()?;
        let settled = started.elapsed().as_millis();
        println!("{answers:>13} {settled:>24} {:>8} {:>9}", node.memory("VmRSS"), node.disk());
        if time == arguments.times {
            // What start-up began goes on for a moment.
            std::thread::sleep(Duration::from_secs(10));
            let cpu = node.cpu_seconds();
            std::thread::sleep(Duration::from_secs(arguments.idle));
            let share = (node.cpu_seconds() - cpu) / arguments.idle as f64 * 100.0;
            println!("idle for {} s: {share:.2} % of a core, {} MiB", arguments.idle, node.memory("VmRSS"));
        }
    }
    Ok(())
}
