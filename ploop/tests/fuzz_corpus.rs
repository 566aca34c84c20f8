//! The corpus of the fuzz targets, and each input of it cut short and with bytes changed, without a
//! fuzzer.
#![cfg(feature = "image")]

#[cfg(feature = "image-write")]
#[path = "../fuzz/repair.rs"]
#[allow(unreachable_pub)]
mod repair;
#[path = "../fuzz/targets.rs"]
#[allow(unreachable_pub)]
mod targets;

use std::fs;
use std::path::Path;

fn replay(name: &str, target: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let input = fs::read(entry.unwrap().path()).unwrap();
        target(&input);
        for cut in (0..input.len()).step_by(1 + input.len() / 20) {
            target(&input[..cut]);
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..40 {
            let mut input = input.clone();
            for _ in 0..3 {
                // Of what lies far behind, little is read.
                let at = random.usize(..input.len().clamp(1, 300));
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.u8(..);
                }
            }
            target(&input);
        }
        inputs += 1;
    }
    assert!(inputs >= 5, "{} has {inputs} inputs", dir.display());
}

#[test]
fn descriptors() {
    replay("descriptor", targets::descriptor);
}

#[test]
fn deltas() {
    replay("delta", targets::delta);
}

#[test]
fn copies() {
    replay("copy", targets::copy);
}

#[test]
fn undo_files() {
    replay("undo", targets::undo);
}

#[test]
fn checks() {
    replay("check", targets::check);
    #[cfg(feature = "image-write")]
    replay("repair", repair::repair);
    fs::remove_dir_all(targets::directory()).unwrap();
}
