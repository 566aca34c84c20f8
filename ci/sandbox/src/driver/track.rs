//! Change tracking, for a copy of a running image: `PLOOP_IOC_TRACK_INIT`, `_SETPOS`, `_READ`, `_STOP`, `_ABORT`.

use ploop_sandbox_wire::Reply;
use rustix::io::Errno;

use super::changed_ranges::ChangedRanges;
use super::device::Device;
use super::maintenance::Kind;
use super::request::Ioctl;
use super::stack::Stack;
use crate::lock::lock;

/// `struct ploop_track_extent`.
fn extent(start: u64, end: u64) -> Reply {
    let mut payload = start.to_le_bytes().to_vec();
    payload.extend_from_slice(&end.to_le_bytes());
    Reply { result: 0, payload }
}

impl Device {
    /// The length of the top delta's file without preallocated space.
    fn top_len(&self) -> Result<u64, Errno> {
        let cluster_log = {
            let state = lock(&self.state);
            let top = state.levels.last().ok_or(Errno::NOENT)?;
            if top.read_only || top.raw {
                return top.file.metadata().map(|m| m.len()).map_err(|_| Errno::IO);
            }
            state.cluster_log
        };
        match &self.contents.lock().disk {
            Stack::Writable(disk) => Ok(u64::from(disk.allocation_head()) << (cluster_log + 9)),
            Stack::ReadOnly(_) | Stack::None => Err(Errno::NOENT),
        }
    }

    /// `PLOOP_IOC_TRACK_INIT`. The reply is the range to copy first.
    pub(super) fn track_init(&self) -> Result<Reply, Errno> {
        let mut maintenance = lock(&self.maintenance);
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let len = self.top_len()?;
        if let Stack::Writable(disk) = &mut self.contents.lock().disk {
            disk.track(true);
        }
        maintenance.kind = Kind::Track;
        maintenance.track = Some(ChangedRanges::default());
        Ok(extent(0, len))
    }

    /// `PLOOP_IOC_TRACK_SETPOS`: the caller has copied everything up to here. 0 begins again.
    pub(super) fn track_set_position(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let position = ioctl.long()? & !511;
        let mut maintenance = lock(&self.maintenance);
        let track = maintenance.track.as_mut().ok_or(Errno::INVAL)?;
        // What has changed behind the position is not noted. It is still to be copied.
        self.gather(track);
        if position < track.end {
            if position != 0 {
                return Err(Errno::INVAL);
            }
            *track = ChangedRanges::default();
        } else {
            track.end = position;
        }
        Ok(())
    }

    /// Adds the changes that the disk noted, in clusters that begin before the position.
    fn gather(&self, track: &mut ChangedRanges) {
        let cluster = 512 << lock(&self.state).cluster_log;
        let end = track.end.next_multiple_of(cluster);
        if let Stack::Writable(disk) = &mut self.contents.lock().disk {
            for range in disk.take_tracked() {
                if range.start < end {
                    track.insert(range.start, range.end.min(end));
                }
            }
        }
    }

    /// `PLOOP_IOC_TRACK_READ`: the next range that changed; EAGAIN if there is none.
    pub(super) fn track_read(&self) -> Result<Reply, Errno> {
        let mut maintenance = lock(&self.maintenance);
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

    /// `PLOOP_IOC_TRACK_STOP`, which fails while there are changes, and `PLOOP_IOC_TRACK_ABORT`.
    pub(super) fn track_stop(&self, abort: bool) -> Result<(), Errno> {
        let mut maintenance = lock(&self.maintenance);
        let Some(track) = maintenance.track.as_mut() else {
            return Ok(());
        };
        self.gather(track);
        if !abort && !track.ranges.is_empty() {
            return Err(Errno::BUSY);
        }
        if let Stack::Writable(disk) = &mut self.contents.lock().disk {
            disk.track(false);
        }
        maintenance.track = None;
        maintenance.kind = Kind::Off;
        Ok(())
    }
}
