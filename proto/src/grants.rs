//! What a caller may do: the person or program behind a certificate or a token.

use std::fmt;
use std::str::FromStr;

/// One thing that a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Grant {
    /// See the state of nodes, groups and the catalog.
    Reader = 0,
    /// Move leaderships and drain nodes; includes [`Grant::Reader`].
    Operator = 1,
    /// Everything, data included.
    Admin = 2,
    /// Read the table.
    TableRead = 3,
    /// Change the table.
    TableWrite = 4,
    /// Look at messages of the queue without taking them.
    QueueRead = 5,
    /// Send, receive and acknowledge messages of the queue.
    QueueWrite = 6,
}

impl Grant {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::Admin,
        Self::Operator,
        Self::Reader,
        Self::TableRead,
        Self::TableWrite,
        Self::QueueRead,
        Self::QueueWrite,
    ];

    /// Its name in certificates, commands and texts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::TableRead => "table-read",
            Self::TableWrite => "table-write",
            Self::QueueRead => "queue-read",
            Self::QueueWrite => "queue-write",
        }
    }
}

/// What a caller may do: a set of [`Grant`]s.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Grants(u8);

/// A text or a number that names no set of grants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no grant; there are admin, operator, reader, table-read, table-write, queue-read, queue-write, and \
     client for the last four"
)]
pub struct UnknownGrant(String);

impl Grants {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(1 << Grant::Admin as u8);
    /// What clients of tables and queues need: reading and changing both.
    pub const CLIENT: Self = Self(
        1 << Grant::TableRead as u8
            | 1 << Grant::TableWrite as u8
            | 1 << Grant::QueueRead as u8
            | 1 << Grant::QueueWrite as u8,
    );

    /// A set of one.
    #[must_use]
    pub const fn of(grant: Grant) -> Self {
        Self(1 << grant as u8)
    }

    /// The set with one more.
    #[must_use]
    pub const fn and(self, grant: Grant) -> Self {
        Self(self.0 | 1 << grant as u8)
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn has(self, grant: Grant) -> bool {
        self.0 & 1 << grant as u8 != 0
    }

    /// Whether the caller may do this: it has the grant, or one that includes it.
    #[must_use]
    pub const fn allow(self, grant: Grant) -> bool {
        let included = matches!(grant, Grant::Reader) && self.has(Grant::Operator);
        self.has(grant) || included || self.has(Grant::Admin)
    }

    /// As it stands in records.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// What [`Grants::bits`] gave.
    ///
    /// # Errors
    /// [`UnknownGrant`]: a later program wrote it.
    pub fn from_bits(bits: u32) -> Result<Self, UnknownGrant> {
        let known = Grant::ALL.into_iter().fold(Self::NONE, Self::and);
        match u8::try_from(bits) {
            Ok(bits) if bits & !known.0 == 0 => Ok(Self(bits)),
            _ => Err(UnknownGrant(format!("{bits:#x}"))),
        }
    }
}

impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Grant::ALL.into_iter().filter(|grant| self.has(*grant)).map(Grant::name);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

impl fmt::Debug for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grants({self})")
    }
}

impl FromStr for Grants {
    type Err = UnknownGrant;

    /// Names with commas between them.
    fn from_str(text: &str) -> Result<Self, UnknownGrant> {
        text.split(',').try_fold(Self::NONE, |grants, name| {
            if name == "client" {
                return Ok(Self(grants.0 | Self::CLIENT.0));
            }
            let grant = Grant::ALL.into_iter().find(|grant| grant.name() == name);
            grant.map(|grant| grants.and(grant)).ok_or_else(|| UnknownGrant(name.to_owned()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_allows_what_it_includes_and_nothing_else() {
        for grant in Grant::ALL {
            assert!(Grants::ALL.allow(grant), "{grant:?}");
            assert!(!Grants::NONE.allow(grant), "{grant:?}");
            for other in Grant::ALL {
                let includes = grant == other
                    || grant == Grant::Admin
                    || (grant, other) == (Grant::Operator, Grant::Reader);
                assert_eq!(Grants::of(grant).allow(other), includes, "{grant:?} {other:?}");
            }
        }
        assert!(!Grants::CLIENT.allow(Grant::Reader));
    }

    #[test]
    fn names_and_bits_are_read_back() {
        for text in ["admin", "operator,table-read", "reader", "table-write,queue-read,queue-write"]
        {
            let grants: Grants = text.parse().unwrap();
            assert_eq!(grants.to_string(), text);
            assert_eq!(Grants::from_bits(grants.bits().into()), Ok(grants));
        }
        assert_eq!("client".parse(), Ok(Grants::CLIENT));
        for wrong in ["", "root", "admin,", "Admin", " reader"] {
            assert!(wrong.parse::<Grants>().is_err(), "{wrong:?}");
        }
        for unknown in [0x80, 0x100, u32::MAX] {
            assert!(Grants::from_bits(unknown).is_err(), "{unknown:#x}");
        }
    }
}
