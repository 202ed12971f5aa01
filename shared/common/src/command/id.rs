//! Identifiers: UUIDs of users and commands, and the partition of a user.
//!
//! # Why are there two versions of user ids?
//! A user that is created under an idempotency key must get the same id from every instance that the request is sent to,
//! so its id is derived from the key: a UUIDv8, whose order says nothing of the time. All others are UUIDv7.
//!
//! # Why is there no counter in an id?
//! Ids of one millisecond would follow from each other, and a client could find those of others from its own (RFC 9562 §6.9).
//! Nothing depends on an order within a millisecond: queues order the commands of a user, and the worker numbers what it
//! applies.
//!
//! # Why are there two tags in a command id?
//! A command is `pending` from its 202 until the worker applied it, and in that time no row knows it or its principal. So the
//! last 24 bits of an id that the API mints are two tags of the other 104, under a [`CommandIdKey`] that clients do not know:
//! one says that this deployment minted the id, the other for which principal. Then `GET /v1/commands/{id}` can tell a command
//! that is on its way from an id that somebody made up, and shows it to its principal alone. Without the key all 74 bits are
//! random; with it 50 are, which keeps ids of one millisecond apart. The tags authorize nothing that has a row: the principal
//! of the row does. Ids that other publishers mint need no tags; they are found once they are applied.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use time::OffsetDateTime;
use uuid::{Builder, Uuid};

use super::{Digest, Principal};

/// A user's id: a UUIDv7, or a UUIDv8 (RFC 9562 §5.8) that was derived from an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct UserId(Uuid);

/// A command's id: a UUIDv7, whose time decides the table partition of its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct CommandId(Uuid);

/// The key of a deployment for the tags in its command ids: unknown to clients, and the same in all its APIs.
#[derive(Clone)]
pub struct CommandIdKey(Hmac<Sha256>);

/// What the tags in a command id say of where it was minted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdOrigin {
    /// By this deployment, for this principal.
    Principal,
    /// By this deployment, for another principal.
    Deployment,
    /// Elsewhere, or nowhere.
    Unknown,
}

/// Why a text or a UUID is no id of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not a UUID at all.
    #[error("not a UUID; write it as 36 characters like 01890a5d-ac96-774b-bcce-b302099a8057")]
    NotUuid,
    /// A UUID of another version, or of a time after the year 9999; RFC 9562 §5.7 defines version 7.
    #[error("not a version 7 UUID; use an id that this service handed out")]
    NotV7,
    /// A UUID of another version; RFC 9562 §5.7 and §5.8 define versions 7 and 8.
    #[error("not a UUID of version 7 or 8; use an id that this service handed out")]
    NotV7OrV8,
}

impl UserId {
    /// A fresh id.
    pub fn mint() -> Self {
        Self(random_at(OffsetDateTime::now_utc()))
    }

    /// The id of the user that is created under this key: its first 16 bytes, but for the bits of version and variant.
    pub fn derive(key: &Digest) -> Self {
        let (bytes, _) = key.as_bytes().split_at(16);
        Self(Builder::from_custom_bytes(std::array::from_fn(|at| bytes[at])).into_uuid())
    }

    /// The partition of this user's commands among `partitions`.
    ///
    /// 64-bit FNV-1a over the 16 bytes of the UUID in network order, both halves folded by exclusive or into 32 bits,
    /// modulo `partitions`. Computed by every publisher, so it is as frozen as the wire names.
    pub fn partition(self, partitions: u16) -> u16 {
        let folded = fold(fnv1a(self.0.as_bytes()));
        // The remainder is below a u16 by definition.
        u16::try_from(folded % u32::from(partitions.max(1))).unwrap_or_default()
    }
}

impl CommandIdKey {
    /// The key of the deployment with this id.
    pub fn of_deployment(id: Uuid) -> Self {
        // A block of SHA-256: zeros behind a shorter key change nothing (RFC 2104 §2).
        let mut key = [0; 64];
        let (purpose, rest) = key.split_at_mut(PURPOSE.len());
        purpose.copy_from_slice(PURPOSE);
        rest[..16].copy_from_slice(id.as_bytes());
        Self(Hmac::new(&key.into()))
    }

    /// Both tags of an id, as its last bytes: twelve bits say that the deployment minted it, twelve for which principal.
    fn tags(&self, id: &[u8; 16], principal: &Principal) -> [u8; 3] {
        let tag = |principal: &[u8]| {
            let mut mac = self.0.clone();
            mac.update(&id[..TAGS_AT]);
            mac.update(principal);
            let [first, second, ..] = <[u8; 32]>::from(mac.finalize().into_bytes());
            (first, second)
        };
        // No principal is empty, so the first is the tag of none.
        let (deployment, principal) = (tag(&[]), tag(principal.as_str().as_bytes()));
        [deployment.0, (deployment.1 & 0xf0) | (principal.0 & 0x0f), principal.1]
    }
}

impl fmt::Debug for CommandIdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommandIdKey(…)")
    }
}

/// What the key is for: the id of a deployment may be one for something else, too.
const PURPOSE: &[u8] = b"rollcall command ids";
/// Where the tags begin.
const TAGS_AT: usize = 13;

impl CommandId {
    /// A fresh id without tags, as other publishers mint it.
    pub fn mint() -> Self {
        Self::mint_at(OffsetDateTime::now_utc())
    }

    /// The same of another clock's time; before 1970 counts as 1970.
    pub fn mint_at(at: OffsetDateTime) -> Self {
        Self(random_at(at))
    }

    /// A fresh id of a command of this principal.
    pub fn mint_for(key: &CommandIdKey, principal: &Principal) -> Self {
        Self::mint().tagged(key, principal)
    }

    /// The same id with the tags of this principal.
    #[must_use]
    pub fn tagged(self, key: &CommandIdKey, principal: &Principal) -> Self {
        let mut bytes = self.0.into_bytes();
        let tags = key.tags(&bytes, principal);
        bytes[TAGS_AT..].copy_from_slice(&tags);
        Self(Uuid::from_bytes(bytes))
    }

    /// What the tags say to this principal. Of made-up ids, one in 4,096 seems to be the deployment's, and of those one in
    /// 4,096 the principal's.
    pub fn origin(self, key: &CommandIdKey, principal: &Principal) -> IdOrigin {
        let bytes = self.0.as_bytes();
        let [first, middle, last] = key.tags(bytes, principal);
        if first != bytes[TAGS_AT] || (middle ^ bytes[TAGS_AT + 1]) & 0xf0 != 0 {
            IdOrigin::Unknown
        } else if middle == bytes[TAGS_AT + 1] && last == bytes[TAGS_AT + 2] {
            IdOrigin::Principal
        } else {
            IdOrigin::Deployment
        }
    }

    /// When it was minted, to the millisecond.
    pub fn minted_at(self) -> OffsetDateTime {
        // Only ids of a time that can be represented are ids.
        minted_at(&self.0).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// 48 bits of milliseconds reach the year 10889, one digit more than `time` and a day's table represent.
fn minted_at(id: &Uuid) -> Option<OffsetDateTime> {
    let ms = id.as_bytes()[..6].iter().fold(0_i128, |ms, b| (ms << 8) | i128::from(*b));
    OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000).ok()
}

/// A UUIDv7 of this time, all other bits random: from a cryptographic generator that the operating system seeds.
fn random_at(at: OffsetDateTime) -> Uuid {
    let milliseconds = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    Builder::from_unix_timestamp_millis(milliseconds, &rand::random()).into_uuid()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn fold(hash: u64) -> u32 {
    // Thirty-two bits by definition.
    u32::try_from((hash >> 32) ^ (hash & 0xffff_ffff)).unwrap_or_default()
}

macro_rules! uuid_of {
    ($id:ty, $versions:pat, $fault:expr, $holds:expr) => {
        impl TryFrom<Uuid> for $id {
            type Error = InvalidId;

            fn try_from(uuid: Uuid) -> Result<Self, InvalidId> {
                let holds: fn(&Uuid) -> bool = $holds;
                if matches!(uuid.get_version_num(), $versions) && holds(&uuid) { Ok(Self(uuid)) } else { Err($fault) }
            }
        }

        impl FromStr for $id {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.parse::<Uuid>().map_err(|_| InvalidId::NotUuid)?.try_into()
            }
        }

        impl From<$id> for Uuid {
            fn from(id: $id) -> Self {
                id.0
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_of!(UserId, 7 | 8, InvalidId::NotV7OrV8, |_| true);
uuid_of!(CommandId, 7, InvalidId::NotV7, |id| minted_at(id).is_some());
