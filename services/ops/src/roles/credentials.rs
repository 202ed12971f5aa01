//! A folder with a URL for each role, and the passwords in them. The server is told only what verifies a password.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::config::{DatabaseUrl, database_url};
use common::db::roles::ServerRole;
use common::files;
use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// PostgreSQL's own number of rounds.
const ROUNDS: u32 = 4096;
/// 62 letters and digits: more than 180 bits.
const PASSWORD_LENGTH: usize = 32;

/// What the folder has, and what it shall have; empty without a folder.
pub(super) struct Credentials {
    files: Vec<Credential>,
    folder: PathBuf,
}

struct Credential {
    role: ServerRole,
    path: PathBuf,
    url: SecretString,
    password: SecretString,
    /// Whether the server was told.
    kept: bool,
}

impl Credentials {
    /// Reads the folder and makes up what is missing. Writes nothing, but closes files to others.
    pub(super) fn look(folder: Option<&Path>, prefix: &str, base: &DatabaseUrl) -> anyhow::Result<Self> {
        let roles = if folder.is_some() { &ServerRole::ALL[..] } else { &[] };
        let folder = folder.unwrap_or(Path::new("")).to_owned();
        let file = |role: &ServerRole| {
            let (name, kept) = (role.name(prefix), |path: &Path| path.exists());
            let path = folder.join(&name);
            let found = [path.clone(), draft(&path)].into_iter().find(|path| kept(path));
            let (url, password) = match &found {
                Some(found) => read(found)?,
                None => fresh(&name, base)?,
            };
            anyhow::Ok(Credential { role: *role, kept: found.as_ref() == Some(&path), path, url, password })
        };
        let files = roles.iter().map(file).collect::<anyhow::Result<_>>()?;
        Ok(Self { files, folder })
    }

    /// Makes the files that were kept lead to another address of the server.
    pub(super) fn lead_to(&mut self, base: &DatabaseUrl) -> anyhow::Result<()> {
        let prefix_and_role = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        for file in &mut self.files {
            let name = prefix_and_role(&file.path).context("a role has no name")?;
            let url =
                base.with_role(&name, file.password.expose_secret()).context("the URL has no place for a role")?;
            if file.kept && file.url.expose_secret().trim_end() != url.expose_secret() {
                let written = files::write(&file.path, format!("{}\n", url.expose_secret()));
                written.with_context(|| format!("failed to write {}", file.path.display()))?;
            }
            file.url = url;
        }
        Ok(())
    }

    /// The URL of each role.
    pub(super) fn urls(self) -> Vec<(ServerRole, SecretString)> {
        self.files.into_iter().map(|file| (file.role, file.url)).collect()
    }

    /// Verifiers of the passwords that the server has not been told.
    pub(super) fn fresh(&self) -> BTreeMap<ServerRole, String> {
        self.files.iter().filter(|file| !file.kept).map(Credential::verifier).collect()
    }

    /// Verifiers of the passwords that were kept for these roles.
    pub(super) fn known(&self, roles: &BTreeSet<ServerRole>) -> BTreeMap<ServerRole, String> {
        self.files.iter().filter(|file| file.kept && roles.contains(&file.role)).map(Credential::verifier).collect()
    }

    /// Writes the new ones down beside their places.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        for file in self.files.iter().filter(|file| !file.kept) {
            let draft = draft(&file.path);
            if !draft.exists() {
                files::create_folder(&self.folder)?;
                let written = files::write(&draft, format!("{}\n", file.url.expose_secret()));
                written.with_context(|| format!("failed to write {}", draft.display()))?;
            }
        }
        Ok(())
    }

    /// Puts the new ones into their places: the server knows them now.
    pub(super) fn keep(&mut self) -> anyhow::Result<()> {
        for file in self.files.iter_mut().filter(|file| !file.kept) {
            fs::rename(draft(&file.path), &file.path)?;
            file.kept = true;
        }
        Ok(())
    }
}

impl Credential {
    fn verifier(&self) -> (ServerRole, String) {
        (self.role, verifier(self.password.expose_secret(), &rand::random()))
    }
}

fn draft(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn read(path: &Path) -> anyhow::Result<(SecretString, SecretString)> {
    let text = read_private(path).with_context(|| format!("failed to read {}", path.display()))?;
    let url = database_url(text.trim_end()).map_err(|fault| anyhow::anyhow!("{} {fault}", path.display()))?;
    match url.password() {
        // Others would have to be normalised first (RFC 5802, SASLprep).
        Some(password) if password.expose_secret().is_ascii() => Ok((SecretString::from(text), password.clone())),
        _ => bail!("{} holds no password in ASCII; delete it to get a fresh one", path.display()),
    }
}

/// Closes it to others, if an earlier version or an operator left it open.
fn read_private(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        files::make_private(&file)?;
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn fresh(name: &str, base: &DatabaseUrl) -> anyhow::Result<(SecretString, SecretString)> {
    let letters = rand::rng().sample_iter(rand::distr::Alphanumeric).take(PASSWORD_LENGTH).map(char::from);
    let password: String = letters.collect();
    let url = base.with_role(name, &password);
    let url =
        url.context("DATABASE_URL has no place for a role; write a socket's folder as its host, %2Flike%2Fthis")?;
    Ok((url, SecretString::from(password)))
}

/// What the server stores of a password: SCRAM-SHA-256 (RFC 5803, RFC 7677).
fn verifier(password: &str, salt: &[u8; 16]) -> String {
    let mut block = keyed(password.as_bytes(), &[&salt[..], &1_u32.to_be_bytes()].concat());
    let mut salted = block;
    for _ in 1..ROUNDS {
        block = keyed(password.as_bytes(), &block);
        salted.iter_mut().zip(block).for_each(|(sum, byte)| *sum ^= byte);
    }
    let stored = Sha256::digest(keyed(&salted, b"Client Key"));
    let server = keyed(&salted, b"Server Key");
    let [salt, stored, server] = [&salt[..], &stored[..], &server[..]].map(|bytes| BASE64.encode(bytes));
    format!("SCRAM-SHA-256${ROUNDS}:{salt}${stored}:{server}")
}

#[expect(clippy::expect_used, reason = "every length makes a key")]
fn keyed(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key");
    mac.update(message);
    mac.finalize().into_bytes().into()
}
