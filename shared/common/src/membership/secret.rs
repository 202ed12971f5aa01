//! Secret of an instance: what proves to the database that a caller is the instance whose id everybody can see.

use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Random bytes, for the life of the process.
#[derive(Debug)]
pub(super) struct Secret(SecretSlice<u8>);

impl Secret {
    pub(super) fn generate() -> Self {
        Self(SecretSlice::from(rand::random::<[u8; 32]>().to_vec()))
    }

    /// The instance that has this secret, as `instance_of` of `migrations/0003` computes it.
    pub(super) fn instance(&self) -> Uuid {
        let digest = Sha256::digest(self.expose());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Uuid::from_bytes(id)
    }

    pub(super) fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }
}
