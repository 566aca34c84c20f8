//! New images: all modes, versions and cluster sizes, empty and of other data; beside those of libploop.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use fastrand::Rng;
use ploop::image::{
    self, ChainOptions, CreateOptions, DeltaFile, Disk, Header, OfflineImage, check,
};
use ploop::{
    ClusterSize, CreateParam, Descriptor, ErrorKind, FormatVersion, ImageMode, Ploop, Size,
};

use super::filled_image::{names_in, read_whole};
use super::line;

const MODES: [ImageMode; 3] = [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw];
const VERSIONS: [FormatVersion; 2] = [FormatVersion::V1, FormatVersion::V2];

fn sizes() -> impl Iterator<Item = ClusterSize> {
    (15..=26).map(|shift| ClusterSize::from_bytes(1 << shift).unwrap())
}

fn is_clean(xml: &Path) {
    let report = check(xml);
    assert!(report.is_clean(), "{report}");
    for delta in report.deltas.iter().filter(|it| it.header.is_some()) {
        let checked = Command::new("qemu-img")
            .args(["check", "-q", "-f", "parallels"])
            .arg(&delta.file)
            .status();
        assert!(checked.unwrap().success(), "{}", delta.file.display());
    }
}

#[test]
fn empty_images_of_all_kinds() {
    for mode in MODES {
        for version in VERSIONS {
            for cluster in sizes() {
                let dir = tempfile::tempdir().unwrap();
                let options = CreateOptions::new()
                    .mode(mode)
                    .format(version)
                    .cluster(cluster);
                // Rounded up.
                let size = Size::from_bytes(3 * cluster.bytes() - 512);
                let made = image::create(dir.path().join("a.hds"), size, &options).unwrap();
                assert_eq!(names_in(dir.path()), ["DiskDescriptor.xml", "a.hds"]);
                let descriptor = made.descriptor().unwrap();
                assert_eq!(descriptor.size.bytes(), 3 * cluster.bytes());
                assert_eq!((descriptor.mode, descriptor.cluster), (mode, cluster));
                is_clean(made.path());
                let disk = Disk::open(made.path()).unwrap();
                assert!(read_whole(&disk).iter().all(|byte| *byte == 0));
                let len = fs::metadata(dir.path().join("a.hds")).unwrap().len();
                let clusters = match mode {
                    ImageMode::Expanded => 1,
                    ImageMode::Preallocated => 4,
                    ImageMode::Raw => 3,
                };
                assert_eq!(len, clusters * cluster.bytes());
            }
        }
    }
}

/// What libploop makes has the same bytes, but for a flag.
#[test]
fn libploop_makes_the_same() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let (own, c) = (dir.path().join("own"), dir.path().join("c"));
        fs::create_dir(&own).unwrap();
        fs::create_dir(&c).unwrap();
        let size = Size::from_mib(10);
        let options = CreateOptions::new().mode(mode).format(FormatVersion::V1);
        image::create(own.join("root.hds"), size, &options).unwrap();
        let param = CreateParam::new(c.join("root.hds"), size)
            .mode(mode)
            .format(FormatVersion::V1)
            .fs(None);
        Ploop::create(&param).unwrap();
        let text = |dir: &Path| fs::read_to_string(dir.join("DiskDescriptor.xml")).unwrap();
        let own_text = text(&own).replace("Parallels_disk_image", line::root());
        assert_eq!(own_text, text(&c));
        let bytes = |dir: &Path| {
            let mut bytes = fs::read(dir.join("root.hds")).unwrap();
            // libploop says of a preallocated base that it is empty.
            if mode == ImageMode::Preallocated {
                bytes[52] = 0;
            }
            bytes
        };
        assert!(bytes(&own) == bytes(&c), "{mode}");
    }
}

#[test]
fn nothing_is_replaced_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    let options = CreateOptions::new();
    let size = Size::from_mib(1);
    image::create(&base, size, &options).unwrap();
    let before = fs::read(&base).unwrap();
    let refused = |file: &str, size, options: &CreateOptions| {
        let error = image::create(dir.path().join(file), size, options).unwrap_err();
        assert_eq!(names_in(dir.path()), ["DiskDescriptor.xml", "root.hds"]);
        error.kind()
    };
    assert_eq!(
        refused("root.hds", size, &options),
        ErrorKind::AlreadyExists
    );
    // A second image cannot be in the same directory.
    assert_eq!(refused("b.hds", size, &options), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&base).unwrap(), before);
    fs::remove_file(dir.path().join("DiskDescriptor.xml")).unwrap();
    let error = image::create(&base, size, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&base).unwrap(), before);
    fs::remove_file(&base).unwrap();
    for (name, size) in [
        ("DiskDescriptor.xml", Size::from_mib(1)),
        ("root.hds.tmp", Size::from_mib(1)),
        ("root.hds", Size::ZERO),
        ("root.hds", Size::from_gib(2048)),
    ] {
        let options = CreateOptions::new().format(FormatVersion::V1);
        let error = image::create(dir.path().join(name), size, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name} {size}");
        assert_eq!(names_in(dir.path()), [""; 0]);
    }
    let error = image::create("/none/root.hds", Size::from_mib(1), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// A disk with data here and there.
fn data(clusters: u64, cluster: u64, random: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; (clusters * cluster) as usize];
    for _ in 0..2 * clusters {
        let at = random.usize(..bytes.len());
        let len = random.usize(..100_000).min(bytes.len() - at);
        if random.u32(..3) > 0 {
            random.fill(&mut bytes[at..at + len]);
        } else {
            bytes[at..at + len].fill(0);
        }
    }
    let len = bytes.len() - random.usize(..cluster as usize);
    // In whole sectors.
    bytes.truncate(len - len % 512);
    bytes
}

/// A reader that gives odd pieces, as a pipe does.
struct Pieces<'a>(&'a [u8], Rng);

impl std::io::Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.1.usize(1..100_000).min(buffer.len());
        std::io::Read::read(&mut self.0, &mut buffer[..len])
    }
}

#[test]
fn images_of_other_data() {
    let mut random = Rng::with_seed(5);
    for mode in MODES {
        for version in VERSIONS {
            for shift in [15, 16, 20, 22] {
                let cluster = ClusterSize::from_bytes(1 << shift).unwrap();
                let dir = tempfile::tempdir().unwrap();
                let bytes = data(6, cluster.bytes(), &mut random);
                let options = CreateOptions::new()
                    .mode(mode)
                    .format(version)
                    .cluster(cluster);
                let (a, b) = (dir.path().join("a"), dir.path().join("b"));
                fs::create_dir(&a).unwrap();
                fs::create_dir(&b).unwrap();
                let source = Pieces(&bytes, random.fork());
                let streamed = image::import(a.join("root.hds"), source, &options, |_| {}).unwrap();
                let raw = dir.path().join("raw");
                fs::write(&raw, &bytes).unwrap();
                let file = DeltaFile::new(fs::File::open(&raw).unwrap(), &raw);
                let chain = ChainOptions::new().raw_base(true);
                let disk = Disk::from_files(vec![file], cluster, chain).unwrap();
                let mut last = None;
                let copied = image::import_disk(b.join("root.hds"), &disk, &options, |it| {
                    last = Some(it);
                })
                .unwrap();
                assert!(last.is_some_and(|last| last.copied == last.total));
                let mut expected = bytes.clone();
                expected.resize(bytes.len().next_multiple_of(cluster.bytes() as usize), 0);
                for image in [&streamed, &copied] {
                    is_clean(image.path());
                    let found = read_whole(&Disk::open(image.path()).unwrap());
                    assert!(found == expected, "{mode} {version} {cluster}");
                }
                let zeros = expected
                    .chunks(cluster.bytes() as usize)
                    .filter(|cluster| cluster.iter().all(|byte| *byte == 0))
                    .count();
                let all = expected.len() / cluster.bytes() as usize;
                let stored = match mode {
                    ImageMode::Expanded => 1 + all - zeros,
                    ImageMode::Preallocated => 1 + all,
                    ImageMode::Raw => all,
                };
                for dir in [&a, &b] {
                    let len = fs::metadata(dir.join("root.hds")).unwrap().len();
                    assert_eq!(len, stored as u64 * cluster.bytes(), "{mode} {cluster}");
                }
            }
        }
    }
}

/// The table gets longer while the data comes, and the clusters that it displaces are still there.
#[test]
fn a_stream_longer_than_the_first_table() {
    struct Sparse {
        len: u64,
        at: u64,
    }
    impl std::io::Read for Sparse {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let len = (self.len - self.at).min(buffer.len() as u64);
            buffer[..len as usize].fill(0);
            // A byte in every 500th cluster.
            if len > 0 && (self.at / CLUSTER) % 500 == 0 && self.at % CLUSTER == 0 {
                buffer[0] = 1 + (self.at / CLUSTER % 251) as u8;
            }
            self.at += len;
            Ok(len as usize)
        }
    }
    const CLUSTER: u64 = 32 << 10;
    // Entries of three clusters.
    let clusters = 3 * 8192 - 16 - 5;
    for version in VERSIONS {
        let dir = tempfile::tempdir().unwrap();
        let options = CreateOptions::new()
            .cluster(ClusterSize::MIN)
            .format(version);
        let source = Sparse {
            len: clusters * CLUSTER,
            at: 0,
        };
        let base = dir.path().join("root.hds");
        let image = image::import(&base, source, &options, |_| {}).unwrap();
        let header = Header::read(&base).unwrap();
        assert_eq!(header.size.bytes(), clusters * CLUSTER);
        assert_eq!(header.data_start(), 3 * CLUSTER);
        is_clean(image.path());
        let disk = Disk::open(image.path()).unwrap();
        let mut found = BTreeMap::new();
        for extent in disk.extents() {
            let extent = extent.unwrap();
            let mut byte = [0];
            disk.read_at(&mut byte, extent.offset).unwrap();
            found.insert(extent.offset / CLUSTER, (extent.len, byte[0]));
        }
        let expected = (0..clusters)
            .step_by(500)
            .map(|number| (number, (CLUSTER, 1 + (number % 251) as u8)));
        assert_eq!(found, expected.collect());
    }
}

#[test]
fn a_source_that_fails_leaves_nothing() {
    struct Failing;
    impl std::io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("torn"))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    let options = CreateOptions::new();
    let error = image::import(&base, Failing, &options, |_| {}).unwrap_err();
    assert!(error.to_string().contains("torn"), "{error}");
    let error = image::import(&base, &b""[..], &options, |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // A disk that ends within a sector, before and behind the first cluster.
    for len in [1, 513, (3 << 20) - 1] {
        for mode in MODES {
            let options = options.clone().mode(mode);
            let source = &vec![1u8; len][..];
            let error = image::import(&base, source, &options, |_| {}).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{len}");
            assert!(error.message().contains(&len.to_string()), "{error}");
            assert_eq!(names_in(dir.path()), [""; 0]);
        }
    }
    // A delta as a raw disk.
    let other = tempfile::tempdir().unwrap();
    let delta = other.path().join("root.hds");
    image::create(&delta, Size::from_mib(1), &options).unwrap();
    let raw = options.clone().mode(ImageMode::Raw);
    let source = fs::File::open(&delta).unwrap();
    let error = image::import(&base, source, &raw, |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(names_in(dir.path()), [""; 0]);
    let cancel = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let options = options.cancel(cancel);
    let error = image::import(&base, &b"data"[..], &options, |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(names_in(dir.path()), [""; 0]);
}

/// A creation that was cut short between the base and the descriptor.
#[test]
fn a_base_without_descriptor_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    let made = dir.path().join(".ploop-create-0123");
    fs::create_dir(&made).unwrap();
    fs::write(made.join("root.hds"), "half").unwrap();
    fs::hard_link(made.join("root.hds"), &base).unwrap();
    let image = image::create(&base, Size::from_mib(1), &CreateOptions::new()).unwrap();
    is_clean(image.path());
    assert_eq!(names_in(dir.path()), ["DiskDescriptor.xml", "root.hds"]);
    assert_eq!(Descriptor::open(image.path()).unwrap().images.len(), 1);
    let _: OfflineImage = image;
}
