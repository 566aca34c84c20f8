// The interface of libploop.so.7: 7.0.95 to 7.0.280. Declarations alone, by subject. "Since" names the version of line 7
// that had a member or a function first; no such word means that 7.0.95 had it.

#ifndef PLOOP_SYS_V7_H
#define PLOOP_SYS_V7_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// ---------------------------------------------------------------- results

enum {
	SYSEXIT_CREAT = 1,
	SYSEXIT_DEVICE = 2,
	SYSEXIT_DEVIOC = 3,
	SYSEXIT_OPEN = 4,
	SYSEXIT_MALLOC = 5,
	SYSEXIT_READ = 6,
	SYSEXIT_WRITE = 7,
	SYSEXIT_RESERVED_8 = 8,
	SYSEXIT_SYSFS = 9,
	SYSEXIT_RESERVED_10 = 10,
	SYSEXIT_PLOOPFMT = 11,
	SYSEXIT_SYS = 12,
	SYSEXIT_PROTOCOL = 13,
	SYSEXIT_LOOP = 14,
	SYSEXIT_FSTAT = 15,
	SYSEXIT_FSYNC = 16,
	SYSEXIT_EBUSY = 17,
	SYSEXIT_FLOCK = 18,
	SYSEXIT_FTRUNCATE = 19,
	SYSEXIT_FALLOCATE = 20,
	SYSEXIT_MOUNT = 21,
	SYSEXIT_UMOUNT = 22,
	SYSEXIT_LOCK = 23,
	SYSEXIT_MKFS = 24,
	SYSEXIT_RESERVED_25 = 25,
	SYSEXIT_RESIZE_FS = 26,
	SYSEXIT_MKDIR = 27,
	SYSEXIT_RENAME = 28,
	SYSEXIT_ABORT = 29,
	SYSEXIT_RELOC = 30,
	SYSEXIT_RESERVED_31 = 31,
	SYSEXIT_RESERVED_32 = 32,
	SYSEXIT_CHANGE_GPT = 33,
	SYSEXIT_RESERVED_34 = 34,
	SYSEXIT_UNLINK = 35,
	SYSEXIT_MKNOD = 36,
	SYSEXIT_PLOOPINUSE = 37,
	SYSEXIT_PARAM = 38,
	SYSEXIT_DISKDESCR = 39,
	SYSEXIT_DEV_NOT_MOUNTED = 40,
	SYSEXIT_FSCK = 41,
	SYSEXIT_RESERVED_42 = 42,
	SYSEXIT_NOSNAP = 43,
	/// The image has no changed-block tracking.
	SYSEXIT_NOCBT = 44,
	/// The encryption helper failed, or is not installed.
	SYSEXIT_CRYPT = 45,
	/// The file system was busy until the timeout of the unmount ran out.
	SYSEXIT_UMOUNT_BUSY = 46,
};

/// What the last failed call of this thread said. It belongs to the library and holds until the thread's next call.
const char *ploop_get_last_error(void);

// ---------------------------------------------------------------- log and cancellation

/// For `ploop_set_verbose_level`: print nothing.
#define PLOOP_LOG_NOCONSOLE (-2)
/// For `ploop_set_verbose_level`: print errors alone.
#define PLOOP_LOG_NOSTDOUT (-1)
/// For `ploop_set_verbose_level`: print with the time, in fractions of a second.
#define PLOOP_LOG_TIMESTAMPS 4

/// Also writes messages to this file; null for none.
int ploop_set_log_file(const char *fname);
/// How much is written to the log file.
void ploop_set_log_level(int level);
/// How much is printed.
void ploop_set_verbose_level(int level);
/// Ends the operation of the calling thread at its next chance: for signal handlers.
void ploop_cancel_operation(void);

// ---------------------------------------------------------------- images and their descriptors

/// The name of a descriptor.
#define DISKDESCRIPTOR_XML "DiskDescriptor.xml"
/// The largest file system in bytes. Before 7.0.120: 16 TiB.
#define PLOOP_MAX_FS_SIZE (50ULL << 40)

enum ploop_image_mode {
	/// Clusters are allocated when they are written to.
	PLOOP_EXPANDED_MODE = 0,
	/// All clusters are allocated at creation.
	PLOOP_EXPANDED_PREALLOCATED_MODE = 1,
	/// No format: the disk's bytes alone.
	PLOOP_RAW_MODE = 2,
};

/// One delta.
struct ploop_image_data {
	/// The snapshot whose data it holds.
	char *guid;
	/// Its file.
	char *file;
	/// It belongs to another image: a volume's parent.
	int alien;
};

/// One snapshot.
struct ploop_snapshot_data {
	char *guid;
	char *parent_guid;
	/// It is to be merged as soon as nothing uses it.
	int temporary;
	/// It belongs to another image: a volume's parent.
	int alien;
};

struct ploop_disk_images_runtime_data;

/// Element `Encryption` of a descriptor.
struct encryption_data {
	char *keyid;
};

/// Element `Volume` of a descriptor.
struct volume_data {
	/// The image that this one was cloned from.
	char *parent;
	/// The snapshot of the parent that this one continues.
	char *snap_guid;
	/// Nothing may write to it, since another volume continues it.
	int ro;
};

/// A handle. The library allocates it; `ploop_close_dd` frees it.
struct ploop_disk_images_data {
	/// Sectors of 512 bytes.
	unsigned long long size;
	unsigned int heads;
	unsigned int cylinders;
	unsigned int sectors;
	/// A value of `ploop_image_mode`.
	int mode;
	/// 0 until the descriptor has been read.
	int nimages;
	struct ploop_image_data **images;
	char *top_guid;
	int nsnapshots;
	struct ploop_snapshot_data **snapshots;
	struct ploop_disk_images_runtime_data *runtime;
	/// Sectors in a cluster.
	unsigned int blocksize;
	unsigned long long max_delta_size;
	/// Null if the image is not encrypted.
	struct encryption_data *enc;
	/// Null if the image is no volume.
	struct volume_data *vol;
	char dummy[32];
};

/// Size and format of an image.
struct ploop_spec {
	/// Sectors of 512 bytes.
	off_t size;
	/// Sectors in a cluster.
	uint32_t blocksize;
	/// 1 or 2; 0 for a raw image.
	int fmt_version;
	char dummy[32];
};

/// Makes a handle. The descriptor is not read yet.
int ploop_open_dd(struct ploop_disk_images_data **di, const char *fname);
/// Reads the descriptor of a handle, without its lock.
int ploop_read_dd(struct ploop_disk_images_data *di);
/// Frees a handle; null is allowed.
void ploop_close_dd(struct ploop_disk_images_data *di);
/// Which of several attachments of one image the handle speaks of.
int ploop_set_component_name(struct ploop_disk_images_data *di, const char *component_name);
int ploop_get_spec(struct ploop_disk_images_data *di, struct ploop_spec *spec);
int ploop_get_top_delta_fname(struct ploop_disk_images_data *di, char *out, int len);
int ploop_get_base_delta_fname(struct ploop_disk_images_data *di, char *out, int len);
/// A pointer into the handle, or null.
char *ploop_find_parent_by_guid(struct ploop_disk_images_data *di, const char *guid);
/// Deprecated. A pointer into the handle, or null.
char *ploop_get_base_delta_uuid(struct ploop_disk_images_data *di);
/// Writes a GUID in braces: 38 characters and the terminator.
int ploop_uuid_generate(char *uuid, int len);

// ---------------------------------------------------------------- creation

enum ploop_create_flags {
	/// The file system's inode tables are written at once.
	PLOOP_CREATE_NOLAZY = 1,
	/// A raw image gets a hole instead of zeros. Since 7.0.121.
	PLOOP_CREATE_SPARSE = 2,
};

struct ploop_create_param {
	/// Sectors of 512 bytes.
	unsigned long long size;
	/// A value of `ploop_image_mode`.
	int mode;
	/// The file of the base delta.
	char *image;
	/// The file system to make; null for none.
	char *fstype;
	/// The file system takes the whole device.
	int without_partition;
	/// Sectors in a cluster; 0 for 2048.
	unsigned int blocksize;
	/// Bytes in a block of the file system; 0 for 4096.
	unsigned int fsblocksize;
	/// 1, 2, or 0 for what the driver prefers.
	int fmt_version;
	/// Bits of `ploop_create_flags`.
	unsigned int flags;
	/// The key to encrypt with; null for none.
	const char *keyid;
	/// The file system's label; null for none.
	char *fslabel;
	char dummy[32];
};

/// Creates an image and its descriptor.
int ploop_create_image(struct ploop_create_param *param);
/// Creates a descriptor alone.
int ploop_create_dd(const char *ddxml, struct ploop_create_param *param);
/// Makes partition and file system anew in an image that exists. Since 7.0.106.
int ploop_init_image(struct ploop_disk_images_data *di, struct ploop_create_param *param);
/// Makes partition and file system on a device.
int ploop_init_device(const char *device, struct ploop_create_param *param);
/// The largest image of the default format, in sectors.
int ploop_get_max_size(unsigned int blocksize, unsigned long long *max);
/// Whether the driver knows format 2.
int ploop_is_large_disk_supported(void);

// ---------------------------------------------------------------- attaching and mounting

/// Flags of `fsck.ext4`. Since 7.0.158; before, any number but 0 means `-p`.
enum e2fsck_flags {
	/// `-p`
	E2FSCK_PREEN = 1,
	/// `-f`
	E2FSCK_FORCE = 2,
	/// `-y`
	E2FSCK_FORCE_REPAIR = 4,
	/// `-n`. Since 7.0.265.
	E2FSCK_RO = 8,
};

struct ploop_mount_param {
	/// Out: the device. In: empty, or the device to use.
	char device[64];
	int ro;
	/// `MS_NOATIME`.
	int flags;
	/// Do not have the kernel read the partition table again. Since 7.0.274.
	int noprobe;
	/// Null for ext4.
	char *fstype;
	/// The directory to mount on; null to attach only.
	char *target;
	/// The snapshot; null for the top.
	char *guid;
	/// Journalled quotas.
	int quota;
	/// More mount options.
	char *mount_data;
	/// Sectors in a cluster of a raw image.
	unsigned int blocksize;
	union {
		/// Check the file system before the mount.
		int fsck;
		/// Bits of `e2fsck_flags`. Since 7.0.158.
		int fsck_flags;
	};
	/// Out: the exit status of the check.
	int fsck_rc;
	char dummy[32];
};

int ploop_mount_image(struct ploop_disk_images_data *di, struct ploop_mount_param *param);
int ploop_mount_snapshot(struct ploop_disk_images_data *di, struct ploop_mount_param *param);
/// `di` may be null; if not, its descriptor has to have been read.
int ploop_umount(const char *device, struct ploop_disk_images_data *di);
int ploop_umount_image(struct ploop_disk_images_data *di);
/// For how many seconds an unmount tries again while the file system is busy.
void ploop_set_umount_timeout(struct ploop_disk_images_data *di, int timeout);
/// Deprecated. Ends what a program that died left half done on a device.
int ploop_complete_running_operation(const char *device);
/// Freezes the file system of a partition (`/dev/ploopNp1`). Since 7.0.226.
int ploop_suspend_device(const char *part);
/// Thaws the file system of a partition. Since 7.0.226.
int ploop_resume_device(const char *part);

// ---------------------------------------------------------------- devices

int ploop_is_mounted(struct ploop_disk_images_data *di);
int ploop_find_dev(const char *component_name, const char *delta, char *buf, int size);
int ploop_get_dev(struct ploop_disk_images_data *di, char *out, int len);
/// All devices of an image. `ploop_free_array` frees the list, which ends with null.
int ploop_get_devs(struct ploop_disk_images_data *di, char **out[]);
void ploop_free_array(char *array[]);
int ploop_get_dev_by_mnt(const char *path, char *buf, int size);
int ploop_get_mnt_by_dev(const char *dev, char *buf, int size);
int ploop_get_partition_by_mnt(const char *path, char *buf, int size);
/// The partition of a device; for an encrypted image the decrypted one. `di` may be null.
int ploop_get_part(struct ploop_disk_images_data *di, const char *dev, char *partname, int len);
/// The device and the partition that hold the file system; for an encrypted image the decrypted ones. `di` may be null.
/// Since 7.0.199.
int ploop_get_devname(struct ploop_disk_images_data *di, const char *dev,
		char *devname, int dlen, char *partname, int plen);
/// The file of a device's top delta, and its format.
int ploop_find_top_delta_name_and_format(const char *device,
		char *image, size_t image_size, char *format, size_t format_size);

// ---------------------------------------------------------------- the file system inside

struct ploop_info {
	/// Bytes.
	unsigned long long fs_bsize;
	unsigned long long fs_blocks;
	unsigned long long fs_bfree;
	unsigned long long fs_inodes;
	unsigned long long fs_ifree;
};

/// Since 7.0.138.
struct ploop_fs_info {
	struct ploop_info fs;
	/// The device; empty if the numbers are those of the last unmount.
	char dev[64];
	/// The partition; empty if the numbers are those of the last unmount.
	char part[64];
};

int ploop_get_info_by_descr(const char *descr, struct ploop_info *info);
/// As `ploop_get_info_by_descr`, and the device. `size` is that of the structure. Since 7.0.138.
int ploop_get_fs_info(const char *descr, struct ploop_fs_info *info, int size);
/// Stores the numbers of a mounted file system beside an image, where `ploop_get_info_by_descr` finds them. Since
/// 7.0.277.1.
int ploop_store_statfs_info(const char *mnt, char *image);

// ---------------------------------------------------------------- resizing, conversion, replacement

struct ploop_resize_param {
	/// Sectors of 512 bytes.
	unsigned long long size;
	/// Make device and file system smaller, instead of filling a balloon. Only where the image is not mounted.
	int offline_resize;
	/// A process in whose mount namespace the image is mounted; 0 for the caller's own.
	pid_t mntns_pid;
	char dummy[32];
};

enum ploop_replace_flags {
	/// The new file gets the name of the old one.
	PLOOP_REPLACE_KEEP_NAME = 1,
	/// The device may write to the new file. Since 7.0.123.
	PLOOP_REPLACE_RW = 2,
};

/// The delta to replace is named by one of `guid`, `cur_file` and `level`.
struct ploop_replace_param {
	/// The new file.
	char *file;
	char *guid;
	int level;
	char *cur_file;
	/// Bits of `ploop_replace_flags`.
	int flags;
	/// Of the new file, a value of `ploop_image_mode`. Since 7.0.123.
	int mode;
	char dummy[28];
};

int ploop_resize_image(struct ploop_disk_images_data *di, struct ploop_resize_param *param);
/// Grows the last partition of a device and the file system in it.
int ploop_resize_blkdev(const char *device, off_t new_size);
int ploop_convert_image(struct ploop_disk_images_data *di, int mode, int flags);
int ploop_replace_image(struct ploop_disk_images_data *di, struct ploop_replace_param *param);
int ploop_set_max_delta_size(struct ploop_disk_images_data *di, unsigned long long size);

// ---------------------------------------------------------------- snapshots

struct ploop_snapshot_param {
	/// The GUID of the snapshot; null for a random one.
	char *guid;
	/// The directory of the new delta; null for that of the base.
	char *snap_dir;
	/// Begin to track changes under this GUID; null for not.
	char *cbt_uuid;
	char dummy[32];
};

struct ploop_tsnapshot_param {
	char *guid;
	char *component_name;
	/// Where to mount the snapshot; null to attach only.
	char *target;
	/// Out: the device of the snapshot.
	char device[64];
	/// The directory of the new delta; null for that of the base.
	char *snap_dir;
	/// Begin to track changes under this GUID; null for not.
	char *cbt_uuid;
	char dummy[32];
};

/// For `ploop_snapshot_switch_param::flags`: the old top becomes snapshot `guid_old`, instead of being deleted.
#define PLOOP_SNAP_SKIP_TOPDELTA_DESTROY 0x01
/// For `ploop_snapshot_switch_param::flags`: the snapshot itself becomes the top, instead of getting a new delta.
#define PLOOP_SNAP_SKIP_TOPDELTA_CREATE 0x02

struct ploop_snapshot_switch_param {
	const char *guid;
	const char *guid_old;
	/// `PLOOP_SNAP_SKIP_…`
	int flags;
	char dummy[32];
};

/// There are no ranges in line 7: each call merges one delta, or all.
struct ploop_merge_param {
	int unused1;
	/// Merge the whole chain.
	int merge_all;
	/// Merge this delta into its parent; null for the top.
	const char *guid;
	/// The lower end of a range in libploop 1.13 to 1.15. Not read here.
	const char *unused2;
	/// A file for the result; null for the lower delta's own.
	const char *new_delta;
	char dummy[32];
};

int ploop_create_snapshot(struct ploop_disk_images_data *di, struct ploop_snapshot_param *param);
/// `holder_fd` may be null. If not, it gets a descriptor of the device: as long as it is open, the snapshot stays.
int ploop_create_temporary_snapshot(struct ploop_disk_images_data *di,
		struct ploop_tsnapshot_param *param, int *holder_fd);
int ploop_switch_snapshot(struct ploop_disk_images_data *di, const char *uuid, int flags);
int ploop_switch_snapshot_ex(struct ploop_disk_images_data *di,
		struct ploop_snapshot_switch_param *param);
int ploop_delete_snapshot(struct ploop_disk_images_data *di, const char *guid);
int ploop_delete_top_delta(struct ploop_disk_images_data *di);
int ploop_merge_snapshot(struct ploop_disk_images_data *di, struct ploop_merge_param *param);

// ---------------------------------------------------------------- discarding

struct ploop_discard_param {
	/// The smallest extent to discard, in bytes.
	uint64_t minlen_b;
	/// End after so many bytes; 0 for no limit.
	uint64_t to_free;
	/// Mount the image if it is not mounted.
	int automount;
	/// Ends the work once it points to another number than 0.
	const volatile int *stop;
	/// Defragment the file system: 0 no, 1 before discarding, 2 instead of discarding.
	int defrag;
	/// Defragment the image if it has more extents than this for each cluster. Since 7.0.256.
	int image_defrag_threshold;
	char dummy[32];
};

/// Bytes.
struct ploop_discard_stat {
	off_t data_size;
	off_t ploop_size;
	off_t image_size;
	off_t balloon_size;
	/// The host's file system takes discards. Since 7.0.253: earlier libraries leave it alone, later ones write it.
	int native_discard;
};

int ploop_discard_get_stat(struct ploop_disk_images_data *di, struct ploop_discard_stat *pd_stat);
int ploop_discard(struct ploop_disk_images_data *di, struct ploop_discard_param *param);
/// Moves a delta's clusters to the holes in its file. Since 7.0.163.2, but not in 7.0.164 and 7.0.165.
int ploop_image_defrag(const char *image, int flags);

// ---------------------------------------------------------------- copies

/// Of `ploop_copy_send`.
struct ploop_copy_send_param {
	const char *device;
	int ofd;
	/// A shell command that stops writing.
	const char *flush_cmd;
	/// From `ploop_copy_receive`; -1 for none.
	int feedback_fd;
	char dummy[32];
};

/// Of `ploop_copy_receiver` and `ploop_copy_receive`.
struct ploop_copy_receive_param {
	/// The file to create.
	const char *file;
	int ifd;
	/// To the sender; -1 for none.
	int feedback_fd;
	char dummy[32];
};

/// Of `ploop_copy_init`.
struct ploop_copy_param {
	int ofd;
	/// Write in a thread of its own. Since 7.0.131.
	int async;
	/// The device, where there is no handle. Since 7.0.235.
	const char *device;
	char dummy[32];
};

/// Bytes.
struct ploop_copy_stat {
	uint64_t xferred_total;
	uint64_t xferred;
};

/// Deprecated. Returns 38 (`SYSEXIT_PARAM`) and does nothing since 7.0.235.
int ploop_copy_send(struct ploop_copy_send_param *arg);
/// Deprecated. Returns 38 (`SYSEXIT_PARAM`) and does nothing since 7.0.235.
int ploop_copy_receive(struct ploop_copy_receive_param *arg);
/// Deprecated. Returns 38 (`SYSEXIT_PARAM`) and does nothing since 7.0.235.
int ploop_send(const char *device, int ofd, const char *flush_cmd, int is_pipe);
/// Deprecated. Returns 38 (`SYSEXIT_PARAM`) and does nothing since 7.0.235.
int ploop_receive(const char *dst);

// ---------------------------------------------------------------- clones, changed-block tracking, encryption

/// A bitmap of the blocks of an image, in pages of `cluster_sec` sectors: an entry of `map` is 0 for a page of zeros, 1 for
/// a page of ones, and otherwise the address of a page. Since 7.0.115.
struct ploop_bitmap {
	/// The GUID of the tracking, as bytes.
	uint8_t uuid[16];
	/// The image's size, in sectors.
	uint64_t size_sec;
	/// Sectors in a page.
	uint64_t cluster_sec;
	/// Sectors for each bit.
	uint32_t granularity_sec;
	/// The number of entries of `map`.
	uint32_t l1_size;
	uint64_t map[];
};

enum {
	/// Encrypt with another key.
	PLOOP_ENC_REENCRYPT = 1,
	/// Overwrite the old file before it is removed.
	PLOOP_ENC_WIPE = 2,
};

struct ploop_encrypt_param {
	/// The key; null to decrypt.
	const char *keyid;
	/// Options for the mounts; null for none.
	const char *mnt_opts;
	/// `PLOOP_ENC_…`
	int flags;
	void *pad[4];
};

/// Copies a descriptor up to a snapshot to another directory: its deltas stay those of this image. Since 7.0.114.
int ploop_clone_dd(struct ploop_disk_images_data *di, const char *guid, const char *target);
/// Removes the tracking of changes. Declared since 7.0.113, exported before.
int ploop_drop_cbt(struct ploop_disk_images_data *di);
/// The clusters that a delta has itself; null on failure. Not to be relied on: with clusters of 1 MiB it sees no cluster
/// beyond the 496th of a disk of 4 GiB, and for a disk of fewer than 64 clusters it writes beyond the end of the bitmap. Since 7.0.115.
struct ploop_bitmap *ploop_get_used_bitmap_from_image(struct ploop_disk_images_data *di, const char *guid);
/// The blocks written since the tracking began; null on failure. Since 7.0.116.
struct ploop_bitmap *ploop_get_tracking_bitmap_from_image(struct ploop_disk_images_data *di,
		const char *guid);
/// Frees a bitmap. Since 7.0.115.
void ploop_release_bitmap(struct ploop_bitmap *bmap);
/// Stores a key's name in the descriptor; null removes it. The data stay as they are.
int ploop_set_encryption_keyid(struct ploop_disk_images_data *di, const char *keyid);
/// Encrypts, re-encrypts or decrypts an image.
int ploop_encrypt_image(struct ploop_disk_images_data *di, struct ploop_encrypt_param *param);

// ---------------------------------------------------------------- volumes (libvolume.h)

/// The head of a list. Since 7.0.104.
struct ploop_volume_list_head {
	struct ploop_volume_tree_element *slh_first;
};

/// A volume, the ones that continue it, and the next that continues the same. Since 7.0.104.
struct ploop_volume_tree_element {
	struct {
		struct ploop_volume_tree_element *sle_next;
	} next;
	struct ploop_volume_list_head children;
	char *path;
};

struct ploop_volume_data {
	/// The directory of the descriptor.
	const char *m_path;
	/// The directory of the image.
	const char *i_path;
};

/// Since 7.0.104.
struct ploop_volume_info {
	/// The length of its top delta, in bytes.
	off_t size;
};

int ploop_volume_create(struct ploop_volume_data *vol, struct ploop_create_param *param);
int ploop_volume_clone(const char *src, struct ploop_volume_data *vol);
int ploop_volume_snapshot(const char *src, struct ploop_volume_data *vol);
int ploop_volume_delete(const char *path);
int ploop_volume_switch(const char *from, const char *to);
/// `size` is that of the structure. Since 7.0.104.
int ploop_volume_get_info(const char *path, struct ploop_volume_info *info, int size);
/// `size` is that of an element. `ploop_volume_clear_tree` frees the tree. Since 7.0.104.
int ploop_volume_get_tree(const char *path, struct ploop_volume_list_head *root, int size);
/// Since 7.0.104.
void ploop_volume_clear_tree(struct ploop_volume_list_head *root);

#include "undeclared.h"

#endif
