//! Whether what an appliance reports of sessions fits what was granted.

use crate::store::Usage;

/// How often bytes may have become fewer between two looks: a session that is admitted anew, as after the tunnel was repaired,
/// counts anew.
const DECREASES: usize = 2;

/// What did not fit since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Behavior {
    ungranted: usize,
    after_end: usize,
    decreased: usize,
}

impl Behavior {
    /// Takes in what a report came to. Whether something does not fit.
    pub(super) fn note(&mut self, usage: &Usage) -> bool {
        self.ungranted += usage.ungranted;
        self.after_end += usage.after_end;
        self.decreased += usage.decreased;
        self.is_off()
    }

    /// Whether something does not fit.
    pub(super) fn is_off(&self) -> bool {
        self.ungranted + self.after_end > 0 || self.decreased > DECREASES
    }

    /// What does not fit, in words; `None` when all does. Begins anew.
    pub(super) fn take(&mut self) -> Option<String> {
        let off = self.is_off();
        let Self { ungranted, after_end, decreased } = std::mem::take(self);
        let parts = [
            (ungranted, "reports of sessions that were never granted to it"),
            (after_end, "reports of sessions connected after it confirmed their end"),
            (decreased, "reports of fewer bytes than before"),
        ];
        let words: Vec<_> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        off.then(|| words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_once() {
        let mut behavior = Behavior::default();
        assert!(!behavior.note(&Usage { known: 3, unknown: 1, ..Usage::default() }));
        assert_eq!(behavior.take(), None);
        assert!(behavior.note(&Usage { ungranted: 1, unknown: 1, ..Usage::default() }));
        assert!(behavior.note(&Usage { ungranted: 1, decreased: 1, unknown: 1, ..Usage::default() }));
        let words = behavior.take().unwrap();
        assert!(words.starts_with("2 reports of sessions that were never granted"), "{words}");
        assert!(words.contains("1 reports of fewer bytes"), "{words}");
        assert_eq!(behavior.take(), None);
        let fewer = Usage { decreased: 1, known: 1, ..Usage::default() };
        assert!(!behavior.note(&fewer), "a repaired tunnel counts anew");
        assert_eq!(behavior.take(), None);
        assert_eq!([(); 3].map(|()| behavior.note(&fewer)), [false, false, true]);
    }
}
