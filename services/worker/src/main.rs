//! The worker as an executable of its own; `rollcall worker` is the same.

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Applies commands from RabbitMQ to PostgreSQL
#[derive(Parser)]
#[command(name = "rollcall-worker", version, after_help = rollcall_worker::settings::help())]
struct Arguments {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Arguments::parse();
    rollcall_worker::process::main().await
}
