//! Identifiers: UUIDs of users and commands, and the partition of a user.
//!
//! # Why are there two versions of user ids?
//! A user that is created under an idempotency key must get the same id from every instance that the request is sent to,
//! so its id is derived from the key: a UUIDv8, whose order says nothing of the time. All others are UUIDv7.
//!
//! # Why is there a checksum in a command id?
//! A command is `pending` from its 202 until the worker applied it, and in that time no row knows it. The last 16 bits of
//! an id that the API mints are a checksum of the other 112, so `GET /v1/commands/{id}` can tell a command that is on its
//! way from an id that somebody made up. It is no signature: it keeps typing errors out, not people.
//! Ids that other publishers mint need no checksum; they are found once they are applied.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::{Builder, NoContext, Timestamp, Uuid};

use super::Digest;

/// A user's id: a UUIDv7, or a UUIDv8 (RFC 9562 §5.8) that was derived from an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct UserId(Uuid);

/// A command's id: a UUIDv7, whose time decides the table partition of its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct CommandId(Uuid);

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
    /// A fresh id, later in order than all that this process minted before.
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
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

impl CommandId {
    /// A fresh id with its checksum.
    pub fn mint() -> Self {
        Self::checked(Uuid::now_v7())
    }

    /// A fresh id of another clock's time; before 1970 counts as 1970.
    pub fn mint_at(at: OffsetDateTime) -> Self {
        let seconds = u64::try_from(at.unix_timestamp()).unwrap_or_default();
        Self::checked(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, at.nanosecond())))
    }

    fn checked(id: Uuid) -> Self {
        let mut bytes = id.into_bytes();
        let sum = checksum(&bytes);
        bytes[14..].copy_from_slice(&sum);
        Self(Uuid::from_bytes(bytes))
    }

    /// Could the API have minted it? Wrong once in 65,536 made-up ids.
    pub fn checksum_holds(self) -> bool {
        let bytes = self.0.as_bytes();
        bytes[14..] == checksum(bytes)
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

fn checksum(bytes: &[u8; 16]) -> [u8; 2] {
    let folded = fold(fnv1a(&bytes[..14]));
    let halves = (folded >> 16) ^ (folded & 0xffff);
    // Sixteen bits by definition.
    u16::try_from(halves).unwrap_or_default().to_be_bytes()
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
