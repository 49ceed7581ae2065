//! Whose data may grow. Where all of it is over its limit, nothing more is begun for those who have the most: what one has filled
//! is not taken from the others.

use std::collections::{HashMap, HashSet};

/// The bytes that each principal may have where the data is over its limit: the limit by the number of principals.
pub(super) fn share(limit: u64, by_principal: &HashMap<String, u64>) -> u64 {
    limit / (by_principal.len().max(1) as u64)
}

/// Whether there is room for more data, and for whose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Room {
    /// For everybody's.
    #[default]
    Enough,
    /// For all but these principals', who have more than their share.
    NotFor(HashSet<String>),
    /// For nobody's.
    None,
}

impl Room {
    /// What there is when the data is over its limit. Far over it, the machine's own disk is at stake.
    pub fn over(limit: u64, bytes: u64, by_principal: HashMap<String, u64>) -> Self {
        let share = share(limit, &by_principal);
        if bytes > limit.saturating_mul(2) {
            return Self::None;
        }
        let greedy: HashSet<String> =
            by_principal.into_iter().filter(|(_, bytes)| *bytes > share).map(|(principal, _)| principal).collect();
        // The journal is more than its texts: it may be over the limit where nobody is over a share.
        if greedy.is_empty() { Self::None } else { Self::NotFor(greedy) }
    }

    /// Whether there is some for this principal's.
    pub fn is_for(&self, principal: &str) -> bool {
        match self {
            Self::Enough => true,
            Self::NotFor(greedy) => !greedy.contains(principal),
            Self::None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_most_is_refused_first() {
        let shares = |shares: &[(&str, u64)]| shares.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        let room = Room::over(100, 110, shares(&[("greedy", 90), ("modest", 20)]));
        assert!(!room.is_for("greedy") && room.is_for("modest") && room.is_for("new"));
        assert_eq!(Room::over(100, 201, shares(&[("greedy", 190), ("modest", 11)])), Room::None);
        assert_eq!(Room::over(100, 110, shares(&[("ann", 45), ("bob", 45)])), Room::None);
        assert_eq!(Room::over(100, 110, HashMap::new()), Room::None);
        assert!(Room::default().is_for("anybody"));
    }
}
