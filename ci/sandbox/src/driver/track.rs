//! Which clusters of the top delta's file changed, for a copy of the running image.

use ploop_sandbox_wire::Reply;
use rustix::io::Errno;

use super::device::Device;
use super::lock::lock;
use super::maintenance::Kind;
use super::request::Ioctl;
use super::stack::Stack;
use super::tracked::Track;

fn extent(start: u64, end: u64) -> Reply {
    let mut payload = start.to_le_bytes().to_vec();
    payload.extend_from_slice(&end.to_le_bytes());
    Reply { result: 0, payload }
}

impl Device {
    /// Of the file of the top delta, without what it was given ahead.
    fn top_len(&self) -> Result<u64, Errno> {
        let cluster_log = {
            let shown = lock(&self.shown);
            let top = shown.levels.last().ok_or(Errno::NOENT)?;
            if top.read_only || top.raw {
                return top.file.metadata().map(|m| m.len()).map_err(|_| Errno::IO);
            }
            shown.cluster_log
        };
        match &lock(&self.data).disk {
            Stack::Writable(disk) => Ok(u64::from(disk.allocation_head()) << (cluster_log + 9)),
            Stack::ReadOnly(_) | Stack::None => Err(Errno::NOENT),
        }
    }

    pub(super) fn track_init(&self) -> Result<Reply, Errno> {
        let mut maintenance = lock(&self.control);
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let len = self.top_len()?;
        if let Stack::Writable(disk) = &mut lock(&self.data).disk {
            disk.track(true);
        }
        maintenance.kind = Kind::Track;
        maintenance.track = Some(Track::default());
        Ok(extent(0, len))
    }

    pub(super) fn track_set_position(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let position = ioctl.long()? & !511;
        let mut maintenance = lock(&self.control);
        let track = maintenance.track.as_mut().ok_or(Errno::INVAL)?;
        if position < track.end {
            if position != 0 {
                return Err(Errno::INVAL);
            }
            *track = Track::default();
        } else {
            track.end = position;
        }
        Ok(())
    }

    /// Takes over what the disk noted.
    fn gather(&self, track: &mut Track) {
        if let Stack::Writable(disk) = &mut lock(&self.data).disk {
            for range in disk.take_tracked() {
                track.insert(range.start, range.end);
            }
        }
    }

    pub(super) fn track_read(&self) -> Result<Reply, Errno> {
        let mut maintenance = lock(&self.control);
        let track = maintenance.track.as_mut().ok_or(Errno::INVAL)?;
        self.gather(track);
        let len = self.top_len()?;
        if let Some((start, end)) = track.take(len) {
            return Ok(extent(start, end));
        }
        if track.end < len {
            return Ok(extent(track.end, len));
        }
        Err(Errno::AGAIN)
    }

    pub(super) fn track_stop(&self, abort: bool) -> Result<(), Errno> {
        let mut maintenance = lock(&self.control);
        let Some(track) = maintenance.track.as_mut() else {
            return Ok(());
        };
        self.gather(track);
        if !abort && !track.changed.is_empty() {
            return Err(Errno::BUSY);
        }
        if let Stack::Writable(disk) = &mut lock(&self.data).disk {
            disk.track(false);
        }
        maintenance.track = None;
        maintenance.kind = Kind::Off;
        Ok(())
    }
}
