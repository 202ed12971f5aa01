//! The worker as an executable of its own; `rollcall worker` is the same.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Applies commands from RabbitMQ to PostgreSQL
#[derive(Parser)]
#[command(name = "rollcall-worker", version, after_help = rollcall_worker::settings::help())]
struct Arguments {}

#[tokio::main]
async fn main() -> ExitCode {
    Arguments::parse();
    common::process::exit_code(rollcall_worker::process::main().await)
}
