# syntax=docker/dockerfile:1
# One image for every role: `rollcall api`, `rollcall worker`, `rollcall migrate run`.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The image's own toolchain: rust-toolchain.toml also asks for components that a build does not need.
ENV RUSTUP_TOOLCHAIN=1.95.0
# The cache mounts keep the registry and every compiled dependency between builds; only what changed is compiled again.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package rollcall-ops --bin rollcall \
    && install -D target/release/rollcall /out/rollcall

FROM debian:bookworm-slim
# Trust anchors for TLS to the database, the broker and the trace backend: always the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    # An empty volume that is mounted there becomes that of the user below.
    && install --directory --owner 10001 --group 10001 --mode 0700 /run/rollcall/roles /run/rollcall/api /run/rollcall/worker
COPY --from=build /out/rollcall /usr/local/bin/rollcall
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# For the API; compose.yaml names the worker's own probe.
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s --retries=3 CMD ["rollcall", "health"]
# No shell in between: signals reach the process itself.
ENTRYPOINT ["rollcall"]
CMD ["api"]
