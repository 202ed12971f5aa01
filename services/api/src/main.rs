//! The HTTP service as an executable of its own; `rollcall api` is the same.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves the user directory over HTTP
#[derive(Parser)]
#[command(name = "rollcall-api", version, after_help = rollcall_api::settings::help())]
struct Arguments {}

#[tokio::main]
async fn main() -> ExitCode {
    Arguments::parse();
    common::process::exit_code(rollcall_api::process::main().await)
}
