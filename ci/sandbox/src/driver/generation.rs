//! Which driver the sandbox stands for: that of OpenVZ 6 or that of Virtuozzo 7.

use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;

/// A driver, by the system whose kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Generation {
    /// The driver of OpenVZ 6 (kernel 042stab)
    #[value(name = "6")]
    OpenVz6,
    /// The driver of Virtuozzo 7: it has more ioctls and more files in sysfs
    #[value(name = "7")]
    Virtuozzo7,
}

/// The driver that a sandbox stands for: the one that was asked for, or else that of Virtuozzo 7 from the moment on when
/// a program has libploop 7, and that of OpenVZ 6 before.
#[derive(Debug)]
pub(crate) struct GenerationChoice {
    is_fixed: bool,
    is_virtuozzo_7: AtomicBool,
}

impl GenerationChoice {
    pub(crate) fn new(asked_for: Option<Generation>) -> GenerationChoice {
        GenerationChoice {
            is_fixed: asked_for.is_some(),
            is_virtuozzo_7: AtomicBool::new(asked_for == Some(Generation::Virtuozzo7)),
        }
    }

    /// A program has loaded libploop of this line.
    pub(super) fn note_libploop(&self, line: u64) {
        if line >= 7 && !self.is_fixed {
            self.is_virtuozzo_7.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_virtuozzo_7(&self) -> bool {
        self.is_virtuozzo_7.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_stays() {
        for (asked_for, before, after) in [
            (None, false, true),
            (Some(Generation::OpenVz6), false, false),
            (Some(Generation::Virtuozzo7), true, true),
        ] {
            let choice = GenerationChoice::new(asked_for);
            assert_eq!(choice.is_virtuozzo_7(), before);
            choice.note_libploop(1);
            assert_eq!(choice.is_virtuozzo_7(), before);
            choice.note_libploop(7);
            assert_eq!(choice.is_virtuozzo_7(), after);
        }
    }
}
