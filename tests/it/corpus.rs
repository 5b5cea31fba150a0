//! The fuzz targets of `tests/fuzz`, over their corpus and over mutations of it: in seconds, and
//! without a fuzzer. What a fuzzer found once is kept in the corpus, and so never comes back.

use std::fs;
use std::panic::{catch_unwind, resume_unwind};
use std::path::Path;

use crate::fuzz::{Random, seeds};

#[path = "../fuzz/src/lib.rs"]
mod targets;

const MUTATIONS_PER_SEED: usize = 400;
/// What parsers have a case for.
const PARTS: [&[u8]; 20] = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\"",
    b"{",
    b"[",
    b"}",
    b"]",
    b",",
    b":",
    b"null",
    b"-1",
    b"1e999",
    b"9007199254740993",
    b"\\u0000",
    b"\\ud800",
    b"\xf0\x9f\x98\x80",
    b"\n",
    b".",
    b"=",
];

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).expect("each target has a corpus");
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "{target} has a corpus of some files");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutated(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = random.of(corpus).clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(9)).min(bytes.len());
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..end, random.of(&PARTS).iter().copied())),
            4 => {
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
            _ => {
                let other = random.of(corpus);
                bytes.truncate(at);
                bytes.extend(&other[random.below(other.len() + 1)..]);
            }
        }
    }
    bytes
}

/// What the panic says is beside the point without the input.
fn run(name: &str, target: targets::Target, input: &[u8], of: &str) {
    if let Err(panic) = catch_unwind(|| target(input)) {
        eprintln!("{name}, {of}: {}", input.escape_ascii());
        resume_unwind(panic);
    }
}

#[test]
fn the_corpus_and_what_is_near_it_do_no_harm() {
    for (name, target) in targets::TARGETS {
        let corpus = corpus(name);
        corpus.iter().for_each(|input| run(name, target, input, "of the corpus"));
        for seed in seeds() {
            let mut random = Random(seed);
            for at in 0..MUTATIONS_PER_SEED {
                let input = mutated(&mut random, &corpus);
                run(name, target, &input, &format!("seed {seed}, mutation {at}"));
            }
        }
    }
}
