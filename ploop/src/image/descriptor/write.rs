//! [`Descriptor::to_xml`]: writing a `DiskDescriptor.xml` as libploop does, with fields that it would drop
//! ([`UnknownFields`]).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::form::DescriptorForm;
use super::{Descriptor, Geometry, Image, ImageKind, MAX_PATH, OPERATION, Snapshot, Volume};
#[cfg(any(feature = "libploop", feature = "image-write"))]
use crate::image::xml::Element;
use crate::{Error, ErrorKind, Guid, ImageMode, Result};

/// The children that libploop reads and writes, for each element that may have others.
#[cfg(any(feature = "libploop", feature = "image-write"))]
mod known {
    pub(super) const ROOT: &[&str] = &["Disk_Parameters", "StorageData", "Snapshots"];
    pub(super) const PARAMETERS: &[&str] = &[
        "Disk_size",
        "Max_delta_size",
        "Cylinders",
        "Heads",
        "Sectors",
        "Padding",
    ];
    pub(super) const STORAGE_DATA: &[&str] = &["Storage"];
    pub(super) const STORAGE: &[&str] = &["Start", "End", "Blocksize", "Preallocated", "Image"];
    pub(super) const IMAGE: &[&str] = &["GUID", "Type", "File"];
    pub(super) const SNAPSHOTS: &[&str] = &["TopGUID", "Shot"];
    pub(super) const SHOT: &[&str] = &["GUID", "ParentGUID", "Temporary"];
}

/// The fields of a descriptor that libploop does not know, and drops when it writes: `UID`, `Name` and `Miscellaneous`
/// of Parallels Desktop, for example, or the version attribute of the root. And those that one line knows, and this
/// crate has no other place for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnknownFields {
    form: DescriptorForm,
    /// The name of the root element, and its attributes.
    root: String,
    /// 0, but in some descriptors of Parallels Desktop.
    padding: u64,
    /// The text of unknown elements, by parent.
    elements: HashMap<ParentElement, Vec<String>>,
    /// `Encryption/KeyId` below the parameters, where libploop knows it.
    pub(crate) key: Option<String>,
    /// `StorageData/Volume`, where libploop knows it.
    pub(crate) volume: Option<Volume>,
}

/// An element with children that libploop does not know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ParentElement {
    Root,
    Parameters,
    StorageData,
    Storage,
    Image(PathBuf),
    Snapshots,
    Shot(Guid),
}

impl UnknownFields {
    /// No such fields.
    fn none(form: &DescriptorForm) -> UnknownFields {
        UnknownFields {
            form: *form,
            root: form.root.to_owned(),
            padding: 0,
            elements: HashMap::new(),
            key: None,
            volume: None,
        }
    }
}

#[cfg(feature = "libploop")]
impl UnknownFields {
    /// Those of a volume that is new.
    pub(crate) fn of_volume(form: &DescriptorForm, volume: Option<Volume>) -> UnknownFields {
        UnknownFields {
            volume,
            ..UnknownFields::none(form)
        }
    }

    /// The same, of an image that belongs to others in this way.
    pub(crate) fn with_volume(&self, volume: Option<Volume>) -> UnknownFields {
        UnknownFields {
            volume,
            ..self.clone()
        }
    }
}

#[cfg(any(feature = "libploop", feature = "image-write"))]
impl UnknownFields {
    /// The unknown fields of a document, whose relative image names are joined to `dir`.
    pub(super) fn of(
        root: Element<'_, '_>,
        dir: &Path,
        form: &DescriptorForm,
    ) -> Result<UnknownFields> {
        let mut elements = HashMap::new();
        let mut keep = |parent: ParentElement, element: Element<'_, '_>, known: &[&str]| {
            let others: Vec<String> = element.others(known).map(str::to_owned).collect();
            if !others.is_empty() {
                elements.insert(parent, others);
            }
        };
        keep(ParentElement::Root, root, known::ROOT);
        let parameters = root.required("Disk_Parameters")?;
        let key = key(parameters, form)?;
        let mut in_parameters = known::PARAMETERS.to_vec();
        in_parameters.extend(key.is_some().then_some("Encryption"));
        keep(ParentElement::Parameters, parameters, &in_parameters);
        let storage_data = root.required("StorageData")?;
        let volume = match form.has_key_and_volume {
            true => Volume::of(storage_data, dir, form)?,
            false => None,
        };
        let mut in_storage_data = known::STORAGE_DATA.to_vec();
        in_storage_data.extend(volume.is_some().then_some("Volume"));
        keep(ParentElement::StorageData, storage_data, &in_storage_data);
        let storage = storage_data.required("Storage")?;
        keep(ParentElement::Storage, storage, known::STORAGE);
        for image in storage.children("Image") {
            let file = form.file(image.required("File")?.text()?, dir);
            keep(ParentElement::Image(file), image, known::IMAGE);
        }
        let snapshots = root.required("Snapshots")?;
        keep(ParentElement::Snapshots, snapshots, known::SNAPSHOTS);
        for shot in snapshots.children("Shot") {
            let guid = shot.required("GUID")?.guid()?;
            keep(ParentElement::Shot(guid), shot, known::SHOT);
        }
        let unknown = UnknownFields {
            form: *form,
            key,
            volume,
            root: root.tag(),
            padding: parameters
                .optional("Padding")
                .and_then(|padding| padding.number().ok())
                .unwrap_or(0),
            elements,
        };
        if unknown.is_dropped() && root.document_text().contains("xmlns") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OPERATION,
                "the descriptor declares XML name spaces, and so its elements that libploop does not know could not be kept; remove the declarations",
            ));
        }
        Ok(unknown)
    }

    /// Whether there are fields that libploop would drop.
    pub(crate) fn is_dropped(&self) -> bool {
        (&*self.root, self.padding, self.elements.is_empty()) != (self.form.root, 0, true)
    }

    /// These fields, with those that libploop has written as it has written them.
    #[cfg(feature = "libploop")]
    pub(crate) fn with_those_written(&self, written: &UnknownFields) -> UnknownFields {
        UnknownFields {
            key: written.key.clone(),
            volume: written.volume.clone(),
            ..self.clone()
        }
    }

    #[cfg(feature = "libploop")]
    pub(crate) fn form(&self) -> &DescriptorForm {
        &self.form
    }
}

/// The name of the key of an encrypted image, where libploop knows it.
#[cfg(any(feature = "libploop", feature = "image-write"))]
fn key(parameters: Element<'_, '_>, form: &DescriptorForm) -> Result<Option<String>> {
    let key = parameters.optional("Encryption");
    let key = key.and_then(|element| element.optional("KeyId"));
    let text = match key.filter(|_| form.has_key_and_volume) {
        Some(key) => key.text()?,
        None => "",
    };
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

impl Descriptor {
    /// The text of a `DiskDescriptor.xml` in `dir` that says this, in the form libploop 1.15 writes: with
    /// GUIDs in lower case, the base first, and the names of files in `dir` relative.
    ///
    /// A top with an old GUID gets [`Guid::TOP`], but for that of a volume, and a geometry that libploop would divide by zero with is
    /// replaced by a usable one.
    ///
    /// # Errors
    ///
    /// As [`validate`](Descriptor::validate); [`ErrorKind::InvalidInput`] for file names that a descriptor
    /// cannot hold, [`ErrorKind::Unsupported`] for an old top whose new GUID belongs to another delta, for an
    /// encrypted image, a split disk, and clusters of a size that libploop does not know.
    pub fn to_xml(&self, dir: impl AsRef<Path>) -> Result<String> {
        if self.encryption.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OPERATION,
                "what says how the image is encrypted cannot be written",
            ));
        }
        if !self.further_storages.is_empty() || self.unusual_cluster.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OPERATION,
                "a split disk, or clusters of a size that libploop does not know, are not written",
            ));
        }
        let mut fields = UnknownFields::none(&DescriptorForm::PARALLELS);
        fields.volume.clone_from(&self.volume);
        self.to_xml_with(&fields, dir.as_ref())
    }

    /// [`to_xml`](Descriptor::to_xml) with unknown fields. libploop ignores such elements only where none of them
    /// follows an image, a storage or a shot, so they come first.
    pub(crate) fn to_xml_with(&self, unknown: &UnknownFields, dir: &Path) -> Result<String> {
        self.validate()?;
        let normal = self.normalized()?;
        let mut xml = Writer::new(&unknown.root);
        normal.write(&mut xml, unknown, dir)?;
        Ok(xml.finish())
    }

    /// The descriptor with the values that libploop would write.
    pub(crate) fn normalized(&self) -> Result<Descriptor> {
        let mut normal = self.clone();
        // Other volumes know one by the GUID of its top.
        if self.volume.is_none() {
            normal.make_top_constant()?;
        }
        normal.max_delta_size = self.max_delta_size.filter(|size| !size.is_zero());
        let Geometry {
            cylinders, heads, ..
        } = self.geometry;
        if cylinders.wrapping_mul(heads) == 0 {
            normal.geometry = Geometry::of(self.size);
        }
        if self.mode == ImageMode::Raw {
            for image in &mut normal.images {
                image.kind = ImageKind::Plain;
            }
        }
        // libploop takes the first image for the base. The others keep their order.
        let base = normal.base().map(|image| image.guid);
        normal.images.sort_by_key(|image| Some(image.guid) != base);
        // libploop 1 removes the top, and leaves its parent's snapshot without an image, where that comes later (A84).
        normal.snapshots = parents_first(normal.snapshots);
        Ok(normal)
    }

    /// Gives the top the GUID that it has in all descriptors of today.
    fn make_top_constant(&mut self) -> Result<()> {
        if self.top != Guid::TOP {
            if self.snapshot(Guid::TOP).is_some() {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    OPERATION,
                    format!(
                        "the top is {}, as in descriptors of old versions, and {} belongs to another delta",
                        self.top,
                        Guid::TOP
                    ),
                ));
            }
            let old = self.top;
            let new = |guid: &mut Guid| {
                if *guid == old {
                    *guid = Guid::TOP;
                }
            };
            self.images
                .iter_mut()
                .for_each(|image| new(&mut image.guid));
            for shot in &mut self.snapshots {
                new(&mut shot.guid);
                new(&mut shot.parent);
            }
            self.top = Guid::TOP;
        }
        Ok(())
    }

    fn write(&self, xml: &mut Writer, unknown: &UnknownFields, dir: &Path) -> Result<()> {
        let sectors = self.size.sectors();
        let others = |xml: &mut Writer, at: &ParentElement| {
            for text in unknown.elements.get(at).into_iter().flatten() {
                xml.verbatim(text);
            }
        };

        others(xml, &ParentElement::Root);
        xml.open("Disk_Parameters");
        xml.text("Disk_size", sectors);
        if let Some(max) = self.max_delta_size {
            xml.text("Max_delta_size", max.sectors());
        }
        xml.text("Cylinders", self.geometry.cylinders);
        xml.text("Heads", self.geometry.heads);
        xml.text("Sectors", self.geometry.sectors_per_track);
        // libploop writes 0 in the place of what was there.
        xml.text("Padding", self.padding.max(unknown.padding));
        if let Some(key) = &unknown.key {
            xml.open("Encryption");
            xml.text("KeyId", key);
            xml.close("Encryption");
        }
        others(xml, &ParentElement::Parameters);
        xml.close("Disk_Parameters");

        xml.open("StorageData");
        if let Some(volume) = &unknown.volume {
            volume.write(xml, &unknown.form, dir)?;
        }
        others(xml, &ParentElement::StorageData);
        xml.open("Storage");
        xml.text("Start", 0);
        xml.text("End", sectors);
        xml.text("Blocksize", self.cluster.sectors());
        if self.mode == ImageMode::Preallocated {
            xml.text("Preallocated", 1);
        }
        others(xml, &ParentElement::Storage);
        for image in &self.images {
            xml.open("Image");
            xml.text("GUID", image.guid);
            xml.text(
                "Type",
                match image.kind {
                    ImageKind::Plain => "Plain",
                    ImageKind::Compressed => "Compressed",
                },
            );
            xml.text("File", name(image, dir, &unknown.form)?);
            others(xml, &ParentElement::Image(image.file.clone()));
            xml.close("Image");
        }
        xml.close("Storage");
        xml.close("StorageData");

        xml.open("Snapshots");
        xml.text("TopGUID", self.top);
        others(xml, &ParentElement::Snapshots);
        for shot in &self.snapshots {
            xml.open("Shot");
            xml.text("GUID", shot.guid);
            xml.text("ParentGUID", shot.parent);
            if shot.temporary {
                xml.verbatim("<Temporary/>");
            }
            others(xml, &ParentElement::Shot(shot.guid));
            xml.close("Shot");
        }
        xml.close("Snapshots");
        Ok(())
    }
}

impl Volume {
    fn write(&self, xml: &mut Writer, form: &DescriptorForm, dir: &Path) -> Result<()> {
        let (parent, snapshot) = (self.parent.as_deref(), self.snapshot);
        if (parent, snapshot, self.read_only) == (None, None, false) {
            xml.verbatim("<Volume/>");
            return Ok(());
        }
        xml.open("Volume");
        if let Some(parent) = parent {
            let name = form.name(parent, dir);
            let name = name.as_deref().and_then(|name| readable(name, dir));
            let unreadable = || {
                let why = "the path of the volume's parent cannot be written to a descriptor";
                Error::new(ErrorKind::InvalidInput, OPERATION, why).with_path(parent)
            };
            xml.text("Parent", name.ok_or_else(unreadable)?);
        }
        if let Some(guid) = snapshot {
            xml.text("SnapshotGUID", guid);
        }
        if self.read_only {
            xml.text("ReadOnly", 1);
        }
        xml.close("Volume");
        Ok(())
    }
}

/// The name, if a descriptor can hold it.
fn readable<'a>(name: &'a Path, dir: &Path) -> Option<&'a str> {
    name.to_str().filter(|name| {
        !name.is_empty()
            && dir.join(name).as_os_str().len() <= MAX_PATH
            // All characters that XML cannot hold, and some that readers change.
            && !name
                .chars()
                .any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
    })
}

/// The name of a file in the descriptor: relative if the file is in its directory.
fn name(image: &Image, dir: &Path, form: &DescriptorForm) -> Result<String> {
    let Some(name) = form.name(&image.file, dir) else {
        let why = format!(
            "the path of image {} has .. inside, or a directory in it whose name ends so, and libploop would take it for another file; rename it, here and in the descriptor",
            image.guid
        );
        return Err(Error::new(ErrorKind::Unsupported, OPERATION, why).with_path(&image.file));
    };
    match readable(&name, dir) {
        Some(name) => Ok(name.to_owned()),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            OPERATION,
            format!(
                "the file name of image {} cannot be written to a descriptor",
                image.guid
            ),
        )
        .with_path(&image.file)),
    }
}

/// Writes XML, each element on a line of its own.
struct Writer {
    out: String,
    depth: usize,
    root: String,
}

impl Writer {
    fn new(root: &str) -> Writer {
        Writer {
            out: format!("<?xml version=\"1.0\"?>\n<{root}>\n"),
            depth: 1,
            root: root.split(' ').next().unwrap_or(root).to_owned(),
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.out, "{:1$}{line}", "", 2 * self.depth);
    }

    fn open(&mut self, name: &str) {
        self.line(format_args!("<{name}>"));
        self.depth += 1;
    }

    fn close(&mut self, name: &str) {
        self.depth -= 1;
        self.line(format_args!("</{name}>"));
    }

    fn text(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = escaped(&value.to_string());
        self.line(format_args!("<{name}>{value}</{name}>"));
    }

    fn verbatim(&mut self, element: &str) {
        self.line(format_args!("{element}"));
    }

    fn finish(mut self) -> String {
        let _ = writeln!(self.out, "</{}>", self.root);
        self.out
    }
}

/// A text as libxml2 writes it if no encoding is set.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if c.is_ascii() => out.push(c),
            c => {
                let _ = write!(out, "&#x{:X};", u32::from(c));
            }
        }
    }
    out
}

/// Each snapshot behind the one that it stands on; others keep their order.
fn parents_first(snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
    let places: HashMap<Guid, usize> = (snapshots.iter().enumerate())
        .map(|(place, snapshot)| (snapshot.guid, place))
        .collect();
    let parents: Vec<Option<usize>> = (snapshots.iter())
        .map(|snapshot| places.get(&snapshot.parent).copied())
        .collect();
    let mut left: Vec<Option<Snapshot>> = snapshots.into_iter().map(Some).collect();
    let mut ordered = Vec::with_capacity(left.len());
    for place in 0..left.len() {
        // With those below that are still to come; in a circle, each once.
        let mut chain = Vec::new();
        let mut next = Some(place);
        while let Some(snapshot) = next.and_then(|place| left[place].take()) {
            chain.push(snapshot);
            next = next.and_then(|place| parents[place]);
        }
        ordered.extend(chain.into_iter().rev());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[cfg(any(feature = "libploop", feature = "image-write"))]
    use super::super::DescriptorFile;
    use super::*;
    use crate::image::Snapshot;
    use crate::{ClusterSize, Size};

    /// Trees of up to twelve deltas, in any order, with names of all sorts.
    fn descriptors() -> impl Strategy<Value = Descriptor> {
        let deltas = prop::collection::vec(
            (
                any::<u128>(),
                any::<prop::sample::Index>(),
                "[^\\p{C}/]{1,9}",
                any::<bool>(),
            ),
            1..12,
        );
        let numbers = (
            1..1u64 << 40,
            15..26u32,
            any::<[u32; 3]>(),
            prop::option::of(any::<u64>().prop_map(Size::from_sectors)),
            0..3usize,
            any::<prop::sample::Index>(),
        );
        (deltas, numbers).prop_map(
            |(
                deltas,
                (sectors, shift, [cylinders, heads, tracks], max_delta_size, mode, order),
            )| {
                let mut guids: Vec<Guid> = Vec::new();
                let (mut images, mut snapshots) = (Vec::new(), Vec::new());
                let last = deltas.len() - 1;
                for (at, (number, parent, name, outside)) in deltas.into_iter().enumerate() {
                    let guid: Guid = if at == last {
                        Guid::TOP
                    } else {
                        uuid::Uuid::from_u128(number | 1).into()
                    };
                    let parent = if at == 0 {
                        Guid::NONE
                    } else {
                        *parent.get(&guids)
                    };
                    guids.push(guid);
                    let dir = if outside { "/elsewhere" } else { "/vz/101" };
                    images.push(Image {
                        guid,
                        file: Path::new(dir).join(format!("{at}{name}")),
                        kind: if mode == 1 {
                            ImageKind::Plain
                        } else {
                            ImageKind::Compressed
                        },
                    });
                    snapshots.push(Snapshot {
                        guid,
                        parent,
                        temporary: outside && at != last,
                    });
                }
                let at = order.index(images.len());
                images.rotate_left(at);
                snapshots.rotate_right(at);
                Descriptor {
                    size: Size::from_sectors(sectors),
                    cluster: ClusterSize::from_bytes(1 << shift).unwrap(),
                    mode: [ImageMode::Expanded, ImageMode::Raw, ImageMode::Preallocated][mode],
                    max_delta_size,
                    geometry: Geometry {
                        cylinders,
                        heads,
                        sectors_per_track: tracks,
                    },
                    unusual_cluster: None,
                    images,
                    further_storages: Vec::new(),
                    snapshots,
                    top: Guid::TOP,
                    encryption: None,
                    volume: None,
                    padding: 0,
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

        #[test]
        fn what_is_written_reads_the_same(descriptor in descriptors()) {
            prop_assume!(descriptor.validate().is_ok());
            let xml = descriptor.to_xml("/vz/101").unwrap();
            prop_assert!(xml.is_ascii());
            let read = Descriptor::parse(&xml, "/vz/101").unwrap();
            prop_assert_eq!(&read, &descriptor.normalized().unwrap());
            prop_assert_eq!(read.base(), read.images.first());
            prop_assert_eq!(read.to_xml("/vz/101").unwrap(), xml);
        }
    }

    #[cfg(any(feature = "libploop", feature = "image-write"))]
    #[test]
    fn what_libploop_does_not_know_is_kept() {
        let text = r#"<?xml version='1.0'?>
<Some_image Version="1.0" a='&lt;2>'><!-- not this -->
  <Disk_Parameters>
    <Disk_size>8192</Disk_size><Cylinders>16</Cylinders><Heads>16</Heads>
    <Padding>0</Padding>
    <Name>d&#xE4;t&amp;a</Name><Name>again</Name>
    <Miscellaneous><Bootable on="1"/>
      <!-- inside --></Miscellaneous>
  </Disk_Parameters>
  <StorageData><Other/>
    <Storage>
      <Blocksize>2048</Blocksize>
      <Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><File>a.hds</File><Note>i</Note></Image>
      <Behind>the images</Behind>
    </Storage>
  </StorageData>
  <Snapshots><Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
      <ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID><Name>s</Name></Shot><Last/></Snapshots>
  <Behind/>
</Some_image>"#;
        let dir = Path::new("/vz");
        let read = |text: &str| {
            let file = DescriptorFile::parse(text.into(), dir, &DescriptorForm::PARALLELS).unwrap();
            (file.descriptor, file.unknown)
        };
        let (descriptor, unknown) = read(text);
        let xml = descriptor.to_xml_with(&unknown, dir).unwrap();
        for expected in [
            "<Some_image Version=\"1.0\" a='&lt;2>'>\n  <Behind/>\n  <Disk_Parameters>\n",
            "    <Padding>0</Padding>\n    <Name>d&#xE4;t&amp;a</Name>\n    <Name>again</Name>\n",
            "<Miscellaneous><Bootable on=\"1\"/>\n      <!-- inside --></Miscellaneous>",
            "  <StorageData>\n    <Other/>\n    <Storage>\n",
            "      <Behind>the images</Behind>\n      <Image>\n",
            "        <File>a.hds</File>\n        <Note>i</Note>\n",
            "</TopGUID>\n    <Last/>\n    <Shot>\n",
            "      <Name>s</Name>\n    </Shot>\n",
            "\n</Some_image>\n",
        ] {
            assert!(xml.contains(expected), "{expected}\n{xml}");
        }
        assert!(!xml.contains("not this"));
        let (again, kept_again) = read(&xml);
        assert_eq!((&kept_again, again.size), (&unknown, descriptor.size));
        assert_eq!(again.to_xml_with(&unknown, dir).unwrap(), xml);
        let spaces = text.replace("Version=", "xmlns:x='y' Version=");
        let parallels = &DescriptorForm::PARALLELS;
        let error = DescriptorFile::parse(spaces.into(), dir, parallels).err();
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
