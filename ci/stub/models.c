// What the functions do if the script does not say otherwise: as much of libploop's work on a descriptor and its deltas as
// the crate's checks need to see, and what is dangerous in it. Each model has the parameters of its function (models.h).
//
// Dangerous without being asked, as libploop 7 is: a mount that can write, and is not told which delta to attach, makes
// format v2 of v1 before it looks for the driver; a replace takes any file; a merge copies clusters without a look at
// sizes and versions; the copies only return 38.
//
// Dangerous if the script asks (`FUNCTION does WORD`; `FUNCTION fails NUMBER` is what it then returns):
//
//     nothing         returns without having done anything
//     no_descriptor   does its work on the files, and does not write the descriptor
//     leftover        leaves `DiskDescriptor.xml.tmp`
//     mark            leaves a delta marked as in use
//     stays           a temporary snapshot stays, though it could not be attached
//     link            stores the file names with `../`
//     fork            forks; the child returns, too
//     streams         closes the standard streams, and opens files in their places
//     signals         changes handlers, the mask, the directory and the umask, and starts a timer
//     thread          leaves a thread behind
//     files           fails, and says which file descriptors are open
//     everybody       signals every process (signal 0), and waits for any child; the text says what came of it
//     reads_on        reads 4096 bytes from the start of a text, however short it is
//     writes_on       writes a whole structure of this line where an older one would be shorter

#define _GNU_SOURCE
#include "stub.h"
#include "models.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

// ---------------------------------------------------------------- descriptors

enum { MOST = 64 };

struct delta {
	char guid[48];
	char type[16];
	char file[PATH_MAX];
};

struct shot {
	char guid[48];
	char parent[48];
	bool temporary;
};

struct descriptor {
	char path[PATH_MAX];
	char size[32], cylinders[32], heads[32], sectors[32], blocksize[32], max_delta[32], keyid[128];
	char top[48];
	/// The element `Volume`, as it stands.
	char volume[4096];
	struct delta deltas[MOST];
	int ndeltas;
	struct shot shots[MOST];
	int nshots;
};

/// The text of the first element of this name from `at` on, before `end`. The crate writes one element a line, and no
/// entities.
static bool element(const char *at, const char *end, const char *name, char *out, size_t len)
{
	char open[64], close[64];
	snprintf(open, sizeof open, "<%s>", name);
	snprintf(close, sizeof close, "</%s>", name);
	const char *start = strstr(at, open);
	if (!start || (end && start >= end))
		return false;
	start += strlen(open);
	const char *stop = strstr(start, close);
	if (!stop || (size_t)(stop - start) >= len)
		return false;
	memcpy(out, start, (size_t)(stop - start));
	out[stop - start] = 0;
	return true;
}

/// A text as it stands in a descriptor.
static void escape(const char *text, char *out, size_t len)
{
	*out = 0;
	for (; *text && strlen(out) + 6 < len; text++) {
		const char plain[] = { *text, 0 };
		strcat(out, *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : plain);
	}
}

static char *read_file(const char *path)
{
	FILE *file = fopen(path, "re");
	if (!file)
		return NULL;
	char *text = calloc(1, 1 << 20);
	if (!text)
		abort();
	size_t len = fread(text, 1, (1 << 20) - 1, file);
	text[len] = 0;
	fclose(file);
	return text;
}

static struct descriptor *read_descriptor(const char *path)
{
	char *text = read_file(path);
	if (!text) {
		fail("Can't open %s: %m", path);
		return NULL;
	}
	struct descriptor *d = calloc(1, sizeof *d);
	if (!d)
		abort();
	snprintf(d->path, sizeof d->path, "%s", path);
	element(text, NULL, "Disk_size", d->size, sizeof d->size);
	element(text, NULL, "Cylinders", d->cylinders, sizeof d->cylinders);
	element(text, NULL, "Heads", d->heads, sizeof d->heads);
	element(text, NULL, "Sectors", d->sectors, sizeof d->sectors);
	element(text, NULL, "Blocksize", d->blocksize, sizeof d->blocksize);
	element(text, NULL, "Max_delta_size", d->max_delta, sizeof d->max_delta);
	element(text, NULL, "KeyId", d->keyid, sizeof d->keyid);
	element(text, NULL, "TopGUID", d->top, sizeof d->top);
	const char *volume = strstr(text, "<Volume");
	const char *end = volume ? strstr(volume, strncmp(volume, "<Volume/>", 9) == 0 ? "/>" : "</Volume>") : NULL;
	if (end)
		snprintf(d->volume, sizeof d->volume, "    %.*s\n", (int)(strchr(end, '>') + 1 - volume), volume);
	for (const char *at = strstr(text, "<Image>"); at && d->ndeltas < MOST; at = strstr(at + 1, "<Image>")) {
		struct delta *delta = &d->deltas[d->ndeltas++];
		const char *end = strstr(at, "</Image>");
		char file[PATH_MAX] = "";
		element(at, end, "GUID", delta->guid, sizeof delta->guid);
		element(at, end, "Type", delta->type, sizeof delta->type);
		element(at, end, "File", file, sizeof file);
		if (file[0] == '/')
			memcpy(delta->file, file, sizeof file);
		else
			snprintf(delta->file, sizeof delta->file, "%.*s%s",
				(int)(strrchr(path, '/') + 1 - path), path, file);
	}
	for (const char *at = strstr(text, "<Shot>"); at && d->nshots < MOST; at = strstr(at + 1, "<Shot>")) {
		struct shot *shot = &d->shots[d->nshots++];
		const char *end = strstr(at, "</Shot>");
		const char *mark = strstr(at, "<Temporary");
		element(at, end, "GUID", shot->guid, sizeof shot->guid);
		element(at, end, "ParentGUID", shot->parent, sizeof shot->parent);
		shot->temporary = mark && mark < end;
	}
	free(text);
	return d;
}

/// As libploop writes it: to `.tmp`, which is renamed. Frees the descriptor.
static int write_descriptor(const struct call *call, struct descriptor *d)
{
	char temporary[PATH_MAX + 8];
	int code = 0;
	snprintf(temporary, sizeof temporary, "%s.tmp", d->path);
	if (does(call, "no_descriptor")) {
		free(d);
		return 0;
	}
	FILE *file = fopen(temporary, "we");
	if (!file) {
		fail("Error at xmlDocFormatDump %s: %m", temporary);
		free(d);
		return SYSEXIT_DISKDESCR;
	}
	int directory = (int)(strrchr(d->path, '/') + 1 - d->path);
	fprintf(file, "<?xml version=\"1.0\"?>\n<Virtuozzo_disk_image>\n  <Disk_Parameters>\n"
		"    <Disk_size>%s</Disk_size>\n", d->size);
	if (d->max_delta[0])
		fprintf(file, "    <Max_delta_size>%s</Max_delta_size>\n", d->max_delta);
	fprintf(file, "    <Cylinders>%s</Cylinders>\n    <Heads>%s</Heads>\n    <Sectors>%s</Sectors>\n"
		"    <Padding>0</Padding>\n", d->cylinders, d->heads, d->sectors);
	if (d->keyid[0])
		fprintf(file, "    <Encryption>\n      <KeyId>%s</KeyId>\n    </Encryption>\n", d->keyid);
	fprintf(file, "  </Disk_Parameters>\n  <StorageData>\n%s    <Storage>\n      <Start>0</Start>\n      <End>%s</End>\n"
		"      <Blocksize>%s</Blocksize>\n", d->volume, d->size, d->blocksize);
	for (int n = 0; n < d->ndeltas; n++) {
		const char *name = d->deltas[n].file;
		const char *up = does(call, "link") ? "../" : "";
		if (strncmp(name, d->path, (size_t)directory) == 0 && !strchr(name + directory, '/')) {
			name += directory;
			// The same file by way of the directory above.
			if (up[0]) {
				int start = directory - 1;
				while (start > 0 && d->path[start - 1] != '/')
					start--;
				fprintf(file, "      <Image>\n        <GUID>%s</GUID>\n        <Type>%s</Type>\n"
					"        <File>../%.*s%s</File>\n      </Image>\n", d->deltas[n].guid,
					d->deltas[n].type, directory - start, d->path + start, name);
				continue;
			}
		}
		fprintf(file, "      <Image>\n        <GUID>%s</GUID>\n        <Type>%s</Type>\n"
			"        <File>%s</File>\n      </Image>\n", d->deltas[n].guid, d->deltas[n].type, name);
	}
	fprintf(file, "    </Storage>\n  </StorageData>\n  <Snapshots>\n    <TopGUID>%s</TopGUID>\n", d->top);
	for (int n = 0; n < d->nshots; n++)
		fprintf(file, "    <Shot>\n      <GUID>%s</GUID>\n      <ParentGUID>%s</ParentGUID>\n%s    </Shot>\n",
			d->shots[n].guid, d->shots[n].parent, d->shots[n].temporary ? "      <Temporary/>\n" : "");
	fprintf(file, "  </Snapshots>\n</Virtuozzo_disk_image>\n");
	if (fclose(file) != 0 || rename(temporary, d->path) != 0) {
		fail("Can't write %s: %m", d->path);
		code = SYSEXIT_DISKDESCR;
	}
	free(d);
	return code;
}

static struct delta *find_delta(struct descriptor *d, const char *guid)
{
	for (int n = 0; n < d->ndeltas; n++)
		if (strcasecmp(d->deltas[n].guid, guid) == 0)
			return &d->deltas[n];
	return NULL;
}

static struct shot *find_shot(struct descriptor *d, const char *guid)
{
	for (int n = 0; n < d->nshots; n++)
		if (strcasecmp(d->shots[n].guid, guid) == 0)
			return &d->shots[n];
	return NULL;
}

static struct shot *only_child(struct descriptor *d, const char *guid, int *count)
{
	struct shot *child = NULL;
	*count = 0;
	for (int n = 0; n < d->nshots; n++) {
		if (strcasecmp(d->shots[n].parent, guid) == 0) {
			child = &d->shots[n];
			++*count;
		}
	}
	return child;
}

static void remove_delta(struct descriptor *d, struct delta *delta)
{
	memmove(delta, delta + 1, (size_t)(d->deltas + --d->ndeltas - delta) * sizeof *delta);
}

static void remove_shot(struct descriptor *d, struct shot *shot)
{
	memmove(shot, shot + 1, (size_t)(d->shots + --d->nshots - shot) * sizeof *shot);
}

static int add_delta(struct descriptor *d, const char *guid, const char *file, const char *parent)
{
	if (d->ndeltas == MOST || d->nshots == MOST)
		return SYSEXIT_PARAM;
	struct delta *delta = &d->deltas[d->ndeltas++];
	struct shot *shot = &d->shots[d->nshots++];
	memset(delta, 0, sizeof *delta);
	memset(shot, 0, sizeof *shot);
	snprintf(delta->guid, sizeof delta->guid, "%s", guid);
	snprintf(delta->type, sizeof delta->type, "Compressed");
	snprintf(delta->file, sizeof delta->file, "%s", file);
	snprintf(shot->guid, sizeof shot->guid, "%s", guid);
	snprintf(shot->parent, sizeof shot->parent, "%s", parent);
	return 0;
}

// ---------------------------------------------------------------- deltas

/// Offsets in the header of a delta, which has 64 bytes; the table follows.
enum { VERSION = 16, CLUSTER = 28, ENTRIES = 32, IN_USE = 44, FIRST = 48, TABLE = 64 };

static uint32_t get(int fd, off_t at)
{
	uint32_t value = 0;
	return pread(fd, &value, sizeof value, at) == sizeof value ? value : 0;
}

static void set(int fd, off_t at, uint32_t value)
{
	if (pwrite(fd, &value, sizeof value, at) != sizeof value)
		abort();
}

static bool is_v1(int fd)
{
	char magic[16];
	return pread(fd, magic, sizeof magic, 0) == sizeof magic && memcmp(magic, "WithoutFreeSpace", 16) == 0;
}

/// What each mount that can write begins with: sectors become clusters in the table, and the magic word follows.
static void make_v2(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	if (is_v1(fd)) {
		uint32_t cluster = get(fd, CLUSTER), entries = get(fd, ENTRIES);
		for (uint32_t n = 0; n < entries; n++)
			set(fd, TABLE + 4 * (off_t)n, get(fd, TABLE + 4 * (off_t)n) / cluster);
		if (pwrite(fd, "WithouFreSpacExt", 16, 0) != 16)
			abort();
	}
	close(fd);
}

static void make_top_v2(const char *descriptor)
{
	struct descriptor *d = read_descriptor(descriptor);
	struct delta *top = d ? find_delta(d, d->top) : NULL;
	if (top)
		make_v2(top->file);
	free(d);
}

static void mark(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		set(fd, IN_USE, 0x746F6E59);
		close(fd);
	}
}

/// Lengthens a new file by zeros. libploop refuses a delta with holes.
static bool lengthen(int fd, off_t len)
{
	static const char zeros[4096];
	bool done = true;
	for (off_t at = 0; at < len && done; at += (off_t)sizeof zeros) {
		size_t now = len - at < (off_t)sizeof zeros ? (size_t)(len - at) : sizeof zeros;
		done = pwrite(fd, zeros, now, at) == (ssize_t)now;
	}
	return done;
}

/// A delta as empty as `like`, of the same disk.
static int make_delta(const char *path, const char *like)
{
	char header[TABLE];
	int from = open(like, O_RDONLY | O_CLOEXEC);
	int to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int code = SYSEXIT_CREAT;
	if (from >= 0 && to >= 0 && pread(from, header, sizeof header, 0) == sizeof header
	    && lengthen(to, (off_t)get(from, FIRST) * 512)
	    && pwrite(to, header, sizeof header, 0) == sizeof header) {
		set(to, IN_USE, 0);
		code = 0;
	} else {
		fail("Can't create %s: %m", path);
	}
	if (from >= 0)
		close(from);
	if (to >= 0)
		close(to);
	return code;
}

/// Copies the clusters of the upper delta into the lower one. Sizes and versions are the upper's: nobody compares.
static int merge_files(const char *upper, const char *lower)
{
	int from = open(upper, O_RDONLY | O_CLOEXEC), to = open(lower, O_RDWR | O_CLOEXEC);
	int code = 0;
	if (from < 0 || to < 0) {
		fail("Can't open %s: %m", from < 0 ? upper : lower);
		code = SYSEXIT_OPEN;
	}
	uint32_t sectors = get(from, CLUSTER), entries = code ? 0 : get(from, ENTRIES);
	off_t cluster = (off_t)sectors * 512;
	off_t unit = is_v1(from) ? 512 : cluster;
	char *data = malloc(cluster ? (size_t)cluster : 1);
	for (uint32_t n = 0; n < entries && !code; n++) {
		off_t at = TABLE + 4 * (off_t)n;
		uint32_t source = get(from, at), place = get(to, at);
		if (!source)
			continue;
		if (!place) {
			off_t end = lseek(to, 0, SEEK_END);
			place = (uint32_t)((end + unit - 1) / unit);
		}
		if (pread(from, data, (size_t)cluster, source * unit) != cluster
		    || pwrite(to, data, (size_t)cluster, place * unit) != cluster) {
			fail("Error in copying cluster %u of %s: %m", n, upper);
			code = SYSEXIT_READ;
		}
		set(to, at, place);
	}
	free(data);
	if (from >= 0)
		close(from);
	if (to >= 0)
		close(to);
	return code;
}

// ---------------------------------------------------------------- what surrounds a call

static int fails(const struct call *call)
{
	const char *value = script_value(call, "fails");
	return value ? atoi(value) : 0;
}

static void do_nothing(int signal)
{
	(void)signal;
}

static void *forever(void *none)
{
	(void)none;
	for (;;)
		pause();
	return NULL;
}

/// What libploop does to the process that calls it.
static void disturb(const struct call *call)
{
	if (does(call, "streams")) {
		for (int fd = 0; fd <= 2; fd++)
			close(fd);
		for (int fd = 0; fd <= 2; fd++)
			if (open("/dev/zero", O_RDWR | O_CLOEXEC) < 0)
				abort();
	}
	if (does(call, "signals")) {
		struct itimerval soon = { .it_value = { .tv_usec = 1000 } };
		sigset_t all;
		signal(SIGRTMIN, SIG_DFL);
		signal(SIGALRM, do_nothing);
		signal(SIGCHLD, SIG_IGN);
		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, NULL);
		setitimer(ITIMER_REAL, &soon, NULL);
		umask(0777);
		if (chdir("/") != 0)
			abort();
	}
	if (does(call, "thread")) {
		pthread_t thread;
		pthread_create(&thread, NULL, forever, NULL);
	}
	if (does(call, "files")) {
		char text[256] = "open:";
		for (int fd = 0; fd < 1024; fd++)
			if (fcntl(fd, F_GETFD) != -1 && strlen(text) < 200)
				sprintf(text + strlen(text), " %d", fd);
		fail("%s", text);
	}
	if (does(call, "everybody")) {
		int killed = kill(-1, 0), why = errno;
		int waited = waitpid(-1, NULL, WNOHANG);
		fail("kill: %d %s; wait: %d %s", killed, killed ? strerror(why) : "-", waited, waited < 0 ? strerror(errno) : "-");
	}
}

/// Begins each model that the script can make dangerous. Whether it returns at once, with `*code`.
static bool begin(struct call *call, const struct ploop_disk_images_data *di, int *code)
{
	disturb(call);
	*code = does(call, "files") ? -1 : fails(call);
	if (di && does(call, "leftover")) {
		char path[PATH_MAX + 8];
		snprintf(path, sizeof path, "%s.tmp", handle_path(di));
		int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (fd >= 0)
			close(fd);
	}
	if (does(call, "fork")) {
		pid_t child = fork();
		if (child > 0)
			waitpid(child, NULL, 0);
		return true;
	}
	return does(call, "nothing") || does(call, "files");
}

/// A failure where no driver is, in libploop's words.
static int no_driver(void)
{
	fail("Can't open /proc/vz/ploop_minor: No such file or directory");
	return SYSEXIT_DEVICE;
}

// ---------------------------------------------------------------- creation

int model_ploop_create_dd(struct call *call, const char *ddxml, struct ploop_create_param *param)
{
	struct descriptor *d = calloc(1, sizeof *d);
	unsigned int blocksize = param->blocksize ? param->blocksize : 2048;
	int code;
	if (!d)
		abort();
	if (begin(call, NULL, &code)) {
		free(d);
		return code;
	}
	static const char TOP[] = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
	snprintf(d->path, sizeof d->path, "%s", ddxml);
	snprintf(d->size, sizeof d->size, "%llu", param->size / blocksize * blocksize);
	snprintf(d->cylinders, sizeof d->cylinders, "%llu", param->size / (16 * 32));
	snprintf(d->heads, sizeof d->heads, "16");
	snprintf(d->sectors, sizeof d->sectors, "32");
	snprintf(d->blocksize, sizeof d->blocksize, "%u", blocksize);
	snprintf(d->top, sizeof d->top, "%s", TOP);
	add_delta(d, TOP, param->image, "{00000000-0000-0000-0000-000000000000}");
	return write_descriptor(call, d);
}

int model_ploop_create_image(struct call *call, struct ploop_create_param *param)
{
	unsigned int blocksize = param->blocksize ? param->blocksize : 2048;
	unsigned long long entries = param->size / blocksize;
	unsigned long long table = TABLE + 4 * entries, cluster = blocksize * 512ull;
	int code;
	if (begin(call, NULL, &code))
		return code;
	int fd = open(param->image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0) {
		fail("Can't create %s: %m", param->image);
		return SYSEXIT_CREAT;
	}
	unsigned long long start = (table + cluster - 1) / cluster * cluster;
	if (!lengthen(fd, (off_t)start)
	    || pwrite(fd, param->fmt_version == 2 ? "WithouFreSpacExt" : "WithoutFreeSpace", 16, 0) != 16)
		abort();
	set(fd, VERSION, 2);
	// Heads, cylinders, cluster, table, sectors (64 bits), mark, first sector, flags.
	uint32_t fields[] = { 16, (uint32_t)(param->size / 512), blocksize, (uint32_t)entries,
		(uint32_t)(entries * blocksize), (uint32_t)(entries * blocksize >> 32), 0, (uint32_t)(start / 512), 1 };
	for (size_t n = 0; n < COUNT(fields); n++)
		set(fd, 20 + 4 * (off_t)n, fields[n]);
	close(fd);
	char ddxml[PATH_MAX + 32];
	snprintf(ddxml, sizeof ddxml, "%.*sDiskDescriptor.xml",
		(int)(strrchr(param->image, '/') + 1 - param->image), param->image);
	return model_ploop_create_dd(call, ddxml, param);
}

int model_ploop_get_max_size(struct call *call, unsigned int blocksize, unsigned long long *max)
{
	(void)call;
	*max = (1ull << 31) * blocksize;
	return 0;
}

// ---------------------------------------------------------------- what needs the driver

/// Also without success: the image is rewritten before the driver is looked for.
static int mount(struct call *call, const char *descriptor, bool read_only, const char *device)
{
	if (!read_only)
		make_top_v2(descriptor);
	return script_out(call, device) ? 0 : no_driver();
}

int model_ploop_mount_image(struct call *call, struct ploop_disk_images_data *di, struct ploop_mount_param *param)
{
	int code;
	// It leaves an image as it is where it is told which delta to attach.
	bool keeps = param->ro || param->guid;
	return begin(call, di, &code) ? code : mount(call, handle_path(di), keeps, "param.device");
}

int model_ploop_get_info_by_descr(struct call *call, const char *descr, struct ploop_info *info)
{
	int code;
	(void)info;
	return begin(call, NULL, &code) ? code : mount(call, descr, false, "info.fs_bsize");
}

int model_ploop_get_fs_info(struct call *call, const char *descr, struct ploop_fs_info *info, int size)
{
	int code;
	(void)info;
	(void)size;
	return begin(call, NULL, &code) ? code : mount(call, descr, false, "info.fs.fs_bsize");
}

int model_ploop_resize_image(struct call *call, struct ploop_disk_images_data *di, struct ploop_resize_param *param)
{
	int code;
	(void)param;
	return begin(call, di, &code) ? code : mount(call, handle_path(di), false, "size");
}

int model_ploop_discard_get_stat(struct call *call, struct ploop_disk_images_data *di, struct ploop_discard_stat *stat)
{
	int code;
	if (begin(call, di, &code))
		return code;
	if (does(call, "writes_on"))
		memset(stat, 0x7f, sizeof *stat);
	return mount(call, handle_path(di), false, "pd_stat.data_size");
}

int model_ploop_discard(struct call *call, struct ploop_disk_images_data *di, struct ploop_discard_param *param)
{
	int code;
	if (begin(call, di, &code))
		return code;
	if (param->automount)
		return mount(call, handle_path(di), false, "nothing");
	if (!does(call, "everybody"))
		fail("Unable to discard: image is not mounted");
	return SYSEXIT_PARAM;
}

int model_ploop_umount_image(struct call *call, struct ploop_disk_images_data *di)
{
	int code;
	if (begin(call, di, &code))
		return code;
	fail("Image %s is not mounted", handle_path(di));
	return SYSEXIT_DEV_NOT_MOUNTED;
}

int model_ploop_umount(struct call *call, const char *device, struct ploop_disk_images_data *di)
{
	int code;
	if (begin(call, di, &code))
		return code;
	fail("Can't open %s: No such file or directory", device);
	return -1;
}

int model_ploop_get_dev_by_mnt(struct call *call, const char *path, char *buf, int size)
{
	(void)path, (void)buf, (void)size;
	return script_out(call, "buf") ? 0 : -1;
}

int model_ploop_get_partition_by_mnt(struct call *call, const char *path, char *buf, int size)
{
	(void)path, (void)buf, (void)size;
	return script_out(call, "buf") ? 0 : -1;
}

// ---------------------------------------------------------------- snapshots

/// The file of a new delta: beside the base or in `directory`, with a GUID of its own.
static void new_name(const struct descriptor *d, const char *directory, const char *guid, char *out, size_t len)
{
	const char *base = d->deltas[0].file;
	if (directory)
		snprintf(out, len, "%s%s.%s", directory, strrchr(base, '/'), guid);
	else
		snprintf(out, len, "%s.%s", base, guid);
}

/// The old top becomes the snapshot, and a new delta the top. Named by the snapshot's GUID, which no other delta has.
static int add_top(struct descriptor *d, const char *guid, const char *directory)
{
	char file[2 * PATH_MAX];
	new_name(d, directory, guid, file, sizeof file);
	struct delta *old = find_delta(d, d->top);
	struct shot *shot = find_shot(d, d->top);
	int code = old && shot ? make_delta(file, old->file) : SYSEXIT_PARAM;
	if (code)
		return code;
	snprintf(old->guid, sizeof old->guid, "%s", guid);
	snprintf(shot->guid, sizeof shot->guid, "%s", guid);
	return add_delta(d, d->top, file, guid);
}

static int snapshot(struct call *call, const char *path, const char *guid, const char *directory)
{
	struct descriptor *d = read_descriptor(path);
	if (!d)
		return SYSEXIT_LOCK;
	int code = add_top(d, guid, directory);
	if (!code)
		return write_descriptor(call, d);
	free(d);
	return code;
}

int model_ploop_create_snapshot(struct call *call, struct ploop_disk_images_data *di, struct ploop_snapshot_param *param)
{
	int code;
	return begin(call, di, &code) ? code : snapshot(call, handle_path(di), param->guid, param->snap_dir);
}

int model_ploop_create_temporary_snapshot(struct call *call, struct ploop_disk_images_data *di,
	struct ploop_tsnapshot_param *param, int *holder_fd)
{
	int code;
	if (begin(call, di, &code))
		return code;
	bool succeeds = script_out(call, "param.device");
	if (succeeds || does(call, "stays")) {
		code = snapshot(call, handle_path(di), param->guid, param->snap_dir);
		struct descriptor *d = read_descriptor(handle_path(di));
		struct shot *shot = d ? find_shot(d, param->guid) : NULL;
		if (shot)
			shot->temporary = true;
		if (d)
			write_descriptor(call, d);
	}
	if (!succeeds)
		return no_driver();
	if (holder_fd)
		*holder_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return code;
}

int model_ploop_switch_snapshot_ex(struct call *call, struct ploop_disk_images_data *di,
	struct ploop_snapshot_switch_param *param)
{
	int code;
	if (begin(call, di, &code))
		return code;
	struct descriptor *d = read_descriptor(handle_path(di));
	if (!d)
		return SYSEXIT_LOCK;
	struct delta *top = find_delta(d, d->top);
	struct shot *shot = find_shot(d, d->top);
	if (!top || !shot || !find_shot(d, param->guid)) {
		fail("Can't find snapshot by uuid %s", param->guid);
		free(d);
		return SYSEXIT_NOSNAP;
	}
	char old[PATH_MAX] = "";
	if (param->flags & PLOOP_SNAP_SKIP_TOPDELTA_DESTROY) {
		// Without a name for it there are two tops.
		const char *name = param->guid_old ? param->guid_old : d->top;
		snprintf(top->guid, sizeof top->guid, "%s", name);
		snprintf(shot->guid, sizeof shot->guid, "%s", name);
	} else {
		memcpy(old, top->file, sizeof old);
		remove_delta(d, top);
		remove_shot(d, shot);
	}
	if (param->flags & PLOOP_SNAP_SKIP_TOPDELTA_CREATE) {
		snprintf(find_delta(d, param->guid)->guid, sizeof top->guid, "%s", d->top);
		snprintf(find_shot(d, param->guid)->guid, sizeof shot->guid, "%s", d->top);
	} else {
		char file[2 * PATH_MAX], name[64];
		model_ploop_uuid_generate(call, name, sizeof name);
		new_name(d, NULL, name, file, sizeof file);
		code = make_delta(file, d->deltas[0].file);
		if (!code)
			code = add_delta(d, d->top, file, param->guid);
	}
	code = code ? code : write_descriptor(call, d);
	if (!code && old[0])
		unlink(old);
	return code;
}

/// Merges a delta into its parent, which gets its GUID.
static int merge_into_parent(struct descriptor *d, const char *guid)
{
	struct shot *shot = find_shot(d, guid);
	struct shot *below = shot ? find_shot(d, shot->parent) : NULL;
	struct delta *upper = find_delta(d, guid);
	struct delta *lower = below ? find_delta(d, below->guid) : NULL;
	if (!upper || !lower) {
		fail("Can't find snapshot by uuid %s", guid);
		return SYSEXIT_NOSNAP;
	}
	int code = merge_files(upper->file, lower->file);
	if (code)
		return code;
	unlink(upper->file);
	char name[48];
	memcpy(name, upper->guid, sizeof name);
	memcpy(shot->parent, below->parent, sizeof shot->parent);
	memcpy(lower->guid, name, sizeof lower->guid);
	remove_shot(d, below);
	// The lower one has its GUID now, too, and comes first.
	for (int n = d->ndeltas; n-- > 0;) {
		if (&d->deltas[n] != lower && strcmp(d->deltas[n].guid, name) == 0) {
			remove_delta(d, &d->deltas[n]);
			break;
		}
	}
	return 0;
}

int model_ploop_merge_snapshot(struct call *call, struct ploop_disk_images_data *di, struct ploop_merge_param *param)
{
	int code;
	struct descriptor *d = read_descriptor(handle_path(di));
	if (!d)
		return SYSEXIT_LOCK;
	struct shot *shot = find_shot(d, param->guid ? param->guid : d->top);
	struct delta *lower = shot ? find_delta(d, shot->parent) : NULL;
	if (lower && does(call, "mark"))
		mark(lower->file);
	if (begin(call, di, &code) || (code && does(call, "mark"))) {
		free(d);
		return code;
	}
	do {
		code = merge_into_parent(d, param->guid ? param->guid : d->top);
	} while (!code && param->merge_all && d->ndeltas > 1);
	if (!code)
		return write_descriptor(call, d);
	free(d);
	return code;
}

int model_ploop_delete_snapshot(struct call *call, struct ploop_disk_images_data *di, const char *guid)
{
	int code, children;
	struct descriptor *d = read_descriptor(handle_path(di));
	if (!d)
		return SYSEXIT_LOCK;
	struct delta *delta = find_delta(d, guid);
	struct shot *shot = find_shot(d, guid);
	struct shot *child = only_child(d, guid, &children);
	if (delta && children == 1 && does(call, "mark"))
		mark(delta->file);
	if (begin(call, di, &code) || (code && does(call, "mark"))) {
		free(d);
		return code;
	}
	if (!delta || !shot) {
		fail("Can't find snapshot by uuid %s", guid);
		free(d);
		return SYSEXIT_NOSNAP;
	}
	if (children > 1) {
		shot->temporary = true;
		return write_descriptor(call, d);
	}
	if (children == 1) {
		char upper[48];
		memcpy(upper, child->guid, sizeof upper);
		code = merge_into_parent(d, upper);
		if (!code)
			return write_descriptor(call, d);
		free(d);
		return code;
	}
	// The file goes even if the descriptor is not written.
	unlink(delta->file);
	if (strcasecmp(guid, d->top) == 0) {
		struct delta *below = find_delta(d, shot->parent);
		struct shot *parent = find_shot(d, shot->parent);
		if (below && parent) {
			memcpy(below->guid, d->top, sizeof below->guid);
			memcpy(parent->guid, d->top, sizeof parent->guid);
			// The others of this GUID are the last.
			delta = &d->deltas[d->ndeltas - 1];
			shot = &d->shots[d->nshots - 1];
		}
	}
	remove_delta(d, delta);
	remove_shot(d, shot);
	return write_descriptor(call, d);
}

int model_ploop_uuid_generate(struct call *call, char *uuid, int len)
{
	static unsigned int number;
	(void)call;
	snprintf(uuid, (size_t)len, "{%08x-1111-4111-8111-%012x}", (unsigned int)getpid(), ++number);
	return 0;
}

// ---------------------------------------------------------------- other changes

int model_ploop_replace_image(struct call *call, struct ploop_disk_images_data *di, struct ploop_replace_param *param)
{
	int code;
	if (begin(call, di, &code))
		return code;
	struct descriptor *d = read_descriptor(handle_path(di));
	struct delta *delta = d && param->guid ? find_delta(d, param->guid) : NULL;
	if (!delta) {
		free(d);
		return SYSEXIT_PARAM;
	}
	if (param->flags & PLOOP_REPLACE_KEEP_NAME)
		code = rename(param->file, delta->file) ? SYSEXIT_RENAME : 0;
	else
		snprintf(delta->file, sizeof delta->file, "%s", param->file);
	code = code ? code : write_descriptor(call, d);
	return code;
}

int model_ploop_set_max_delta_size(struct call *call, struct ploop_disk_images_data *di, unsigned long long size)
{
	int code;
	if (begin(call, di, &code))
		return code;
	struct descriptor *d = read_descriptor(handle_path(di));
	if (!d)
		return SYSEXIT_LOCK;
	d->max_delta[0] = 0;
	if (size)
		snprintf(d->max_delta, sizeof d->max_delta, "%llu", size);
	return write_descriptor(call, d);
}

int model_ploop_convert_image(struct call *call, struct ploop_disk_images_data *di, int mode, int flags)
{
	int code;
	(void)flags;
	if (begin(call, di, &code))
		return code;
	if (mode != PLOOP_RAW_MODE)
		return 0;
	fail("the stub does not convert to raw");
	return SYSEXIT_PARAM;
}

int model_ploop_set_encryption_keyid(struct call *call, struct ploop_disk_images_data *di, const char *keyid)
{
	int code;
	if (begin(call, di, &code))
		return code;
	struct descriptor *d = read_descriptor(handle_path(di));
	if (!d)
		return SYSEXIT_LOCK;
	// Whether the data are encrypted does not matter.
	escape(keyid ? keyid : "", d->keyid, sizeof d->keyid);
	return write_descriptor(call, d);
}

// ---------------------------------------------------------------- copies

#if LINE == 7
int model_ploop_copy_send(struct call *call, struct ploop_copy_send_param *arg)
{
	(void)call, (void)arg;
	return SYSEXIT_PARAM;
}

int model_ploop_copy_receive(struct call *call, struct ploop_copy_receive_param *arg)
{
	(void)call, (void)arg;
	return SYSEXIT_PARAM;
}

int model_ploop_send(struct call *call, const char *device, int ofd, const char *flush_cmd, int is_pipe)
{
	(void)call, (void)device, (void)ofd, (void)flush_cmd, (void)is_pipe;
	return SYSEXIT_PARAM;
}

int model_ploop_receive(struct call *call, const char *dst)
{
	(void)call, (void)dst;
	return SYSEXIT_PARAM;
}
#endif
