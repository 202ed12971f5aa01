//! Writes `shared/client/src/generated.rs` from the contract. `cargo run -- generate` runs it when the contract has moved.
//!
//! # Why a file, and a package of its own?
//! With a macro or a build script every build of the client would parse the contract and compile the generator with all that
//! it needs; so only whoever runs this or the tests does. And what calls the service can be read, and compared in a review.

mod mend;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use progenitor::{GenerationSettings, Generator, HooksMode, InterfaceStyle};
use sha2::{Digest, Sha256};

fn main() -> anyhow::Result<()> {
    let current = generate()?;
    let stale = fs::read_to_string(target()).unwrap_or_default() != current;
    if stale && std::env::args().any(|argument| argument == "--check") {
        bail!("shared/client/src/generated.rs is not current; run `cargo run -- generate`");
    }
    if stale {
        fs::write(target(), current)?;
    }
    Ok(())
}

fn client() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn target() -> PathBuf {
    client().join("src/generated.rs")
}

/// The client as text.
fn generate() -> anyhow::Result<String> {
    let contract = client().join("../../openapi/rollcall.json");
    let text = fs::read_to_string(&contract).with_context(|| format!("{} cannot be read", contract.display()))?;
    let mut document = serde_json::from_str(&text)?;
    mend::mend(&mut document)?;

    let mut settings = GenerationSettings::default();
    settings.with_interface(InterfaceStyle::Builder).with_hooks(HooksMode::Expected);
    settings.with_inner_type("crate::Patience".parse().map_err(|fault| anyhow!("{fault}"))?);
    settings.with_derive("PartialEq");
    for (name, path) in mend::WRITTEN_BY_HAND {
        settings.with_replacement(name, path, std::iter::empty());
    }
    let tokens = Generator::new(&settings).generate_tokens(&serde_json::from_value(document)?)?;
    // Its examples would be listed with the tests as ignored.
    let code = prettyplease::unparse(&syn::parse2(tokens)?).replace("```ignore", "```text");
    // `rollcall generate --check` compares the hash, so that it needs no generator.
    let hash = Sha256::digest(text.as_bytes()).iter().fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"));
    Ok(format!("// Written by `cargo run -- generate` from the contract with the SHA-256 {hash}.\n\n{code}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_client_is_current() {
        let current = super::generate().unwrap();
        let written = std::fs::read_to_string(super::target()).unwrap();
        assert!(written == current, "shared/client/src/generated.rs is not current; run `cargo run -- generate`");
    }
}
