// Records calls and reads the script: see stub.h.

#define _GNU_SOURCE
#include "stub.h"
#include "models.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct call {
	const char *function;
	/// Which call of this function it is since the script was written, from 1.
	int number;
	/// The lines of the script that are this call's, each ended by a zero.
	char *script;
	size_t script_len;
	char *record;
	size_t record_len;
};

static void append(char **text, size_t *len, const char *words, size_t count)
{
	char *longer = realloc(*text, *len + count + 1);
	if (!longer)
		abort();
	memcpy(longer + *len, words, count);
	longer[*len + count] = 0;
	*text = longer;
	*len += count;
}

// ---------------------------------------------------------------- the script

/// The number of calls of each function since the script was written. Tests make one call at a time.
static struct count {
	struct count *next;
	const char *function;
	int number;
} *counts;
static struct timespec counted_since;
static ino_t counted_script;

static int count_call(const char *function, const struct stat *script)
{
	if (script->st_ino != counted_script || script->st_mtim.tv_sec != counted_since.tv_sec
	    || script->st_mtim.tv_nsec != counted_since.tv_nsec) {
		while (counts) {
			struct count *next = counts->next;
			free(counts);
			counts = next;
		}
		counted_script = script->st_ino;
		counted_since = script->st_mtim;
	}
	struct count *count = counts;
	while (count && strcmp(count->function, function) != 0)
		count = count->next;
	if (!count) {
		count = calloc(1, sizeof *count);
		if (!count)
			abort();
		// A name in the program's read-only memory.
		count->function = function;
		count->next = counts;
		counts = count;
	}
	return ++count->number;
}

/// Whether a line is that of the call; `rest` gets what follows the function.
static bool is_own_line(const struct call *call, const char *line, const char **rest)
{
	size_t len = strlen(call->function);
	if (strncmp(line, call->function, len) != 0)
		return false;
	line += len;
	if (*line == '#') {
		char *end;
		if (strtol(line + 1, &end, 10) != call->number)
			return false;
		line = end;
	}
	if (*line != ' ')
		return false;
	*rest = line + 1;
	return true;
}

static void read_script(struct call *call)
{
	const char *path = getenv("PLOOP_STUB_SCRIPT");
	FILE *file = path ? fopen(path, "re") : NULL;
	struct stat st;
	if (!file)
		return;
	if (fstat(fileno(file), &st) == 0)
		call->number = count_call(call->function, &st);
	char *line = NULL;
	size_t size = 0;
	while (getline(&line, &size, file) > 0) {
		const char *rest;
		line[strcspn(line, "\n")] = 0;
		if (is_own_line(call, line, &rest))
			append(&call->script, &call->script_len, rest, strlen(rest) + 1);
	}
	free(line);
	fclose(file);
}

/// The rest of a line that begins with these words.
static const char *line_after(const struct call *call, const char *first, const char *second)
{
	const char *line = call->script;
	const char *end = line + call->script_len;
	for (; line && line < end; line += strlen(line) + 1) {
		size_t len = strlen(first);
		if (strncmp(line, first, len) != 0 || (line[len] != ' ' && line[len]))
			continue;
		const char *rest = line[len] ? line + len + 1 : line + len;
		if (!second)
			return rest;
		len = strlen(second);
		if (strncmp(rest, second, len) == 0 && (rest[len] == ' ' || !rest[len]))
			return rest[len] ? rest + len + 1 : rest + len;
	}
	return NULL;
}

const char *script_value(const struct call *call, const char *word)
{
	return line_after(call, word, NULL);
}

const char *script_out(const struct call *call, const char *name)
{
	return line_after(call, "out", name);
}

bool does(const struct call *call, const char *word)
{
	return line_after(call, "does", word) != NULL;
}

bool scripted_code(struct call *call, int *code)
{
	const char *value = script_value(call, "code");
	if (value)
		*code = atoi(value);
	return value != NULL;
}

bool scripted_number(struct call *call, const char *name, long long *value)
{
	const char *text = script_out(call, name);
	if (text)
		*value = strtoll(text, NULL, 0);
	return text != NULL;
}

void take_bytes(struct call *call, const char *name, char *out, size_t len)
{
	const char *text = script_out(call, name);
	if (text && out)
		strncpy(out, text, len);
}

void take_text(struct call *call, const char *name, char *out, long long len)
{
	const char *text = script_out(call, name);
	if (text && out && len > 0)
		snprintf(out, (size_t)len, "%s", text);
}

// ---------------------------------------------------------------- the record

static void put(struct call *call, const char *name, const char *kind, const char *value, size_t len)
{
	append(&call->record, &call->record_len, name, strlen(name));
	append(&call->record, &call->record_len, "\t", 1);
	append(&call->record, &call->record_len, kind, strlen(kind));
	append(&call->record, &call->record_len, "\t", 1);
	append(&call->record, &call->record_len, value, len);
	append(&call->record, &call->record_len, "\n", 1);
}

static void put_hexadecimal(struct call *call, const char *name, const char *kind, const void *bytes, size_t len)
{
	char *digits = malloc(2 * len + 1);
	if (!digits)
		abort();
	for (size_t at = 0; at < len; at++)
		sprintf(digits + 2 * at, "%02x", ((const unsigned char *)bytes)[at]);
	put(call, name, kind, digits, 2 * len);
	free(digits);
}

void put_number(struct call *call, const char *name, long long value)
{
	char digits[32];
	put(call, name, "number", digits, (size_t)sprintf(digits, "%lld", value));
}

void put_text(struct call *call, const char *name, const char *text)
{
	if (text)
		put_hexadecimal(call, name, "text", text, strlen(text));
	else
		put(call, name, "null", "-", 1);
}

void put_pointer(struct call *call, const char *name, const volatile void *pointer)
{
	if (pointer)
		put(call, name, "pointer", "set", 3);
	else
		put(call, name, "null", "-", 1);
}

bool put_bytes(struct call *call, const char *name, const void *bytes, size_t len)
{
	if (bytes)
		put_hexadecimal(call, name, "bytes", bytes, len);
	else
		put(call, name, "null", "-", 1);
	return bytes != NULL;
}

static void write_record(const struct call *call)
{
	const char *path = getenv("PLOOP_STUB_RECORD");
	int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
	if (fd < 0)
		return;
	// One write, so that calls of several processes do not mix.
	if (write(fd, call->record, call->record_len) != (ssize_t)call->record_len)
		abort();
	close(fd);
}

static void clear_record(struct call *call)
{
	free(call->record);
	call->record = NULL;
	call->record_len = 0;
}

struct call *call_begin(const char *function)
{
	int before = errno;
	struct call *call = calloc(1, sizeof *call);
	if (!call)
		abort();
	call->function = function;
	read_script(call);
	const char *word = "call\t";
	append(&call->record, &call->record_len, word, strlen(word));
	append(&call->record, &call->record_len, function, strlen(function));
	append(&call->record, &call->record_len, "\n", 1);
	// The real functions that succeed need not touch it.
	errno = before;
	return call;
}

void call_written(struct call *call)
{
	int before = errno;
	write_record(call);
	clear_record(call);
	const char *text = script_value(call, "error");
	if (text)
		fail("%s", text);
	if ((text = script_value(call, "prints"))) {
		printf("%s\n", text);
		fflush(stdout);
	}
	if ((text = script_value(call, "warns")))
		fprintf(stderr, "%s\n", text);
	errno = before;
}

void call_end(struct call *call, long long code)
{
	int before = errno;
	char digits[32];
	put(call, "end", call->function, digits, (size_t)sprintf(digits, "%lld", code));
	write_record(call);
	clear_record(call);
	free(call->script);
	free(call);
	errno = before;
}

// ---------------------------------------------------------------- the error text

/// As long as the real one.
static __thread char error_text[8192];

char *error_buffer(void)
{
	return error_text;
}

void fail(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(error_text, sizeof error_text, format, arguments);
	va_end(arguments);
}

const char *model_ploop_get_last_error(struct call *call)
{
	(void)call;
	return error_text;
}

// ---------------------------------------------------------------- handles

/// The library allocates handles, so one may have more than its users know of.
struct handle {
	struct ploop_disk_images_data data;
	char *path;
	char *component;
};

const char *handle_path(const void *handle)
{
	return ((const struct handle *)handle)->path;
}

void put_handle(struct call *call, const char *name, const void *pointer)
{
	const struct handle *handle = pointer;
	if (!handle) {
		put(call, name, "null", "-", 1);
		return;
	}
	put_hexadecimal(call, name, "handle", handle->path, strlen(handle->path));
	if (handle->component) {
		char member[64];
		snprintf(member, sizeof member, "%s.component", name);
		put_text(call, member, handle->component);
	}
}

int model_ploop_open_dd(struct call *call, struct ploop_disk_images_data **di, const char *path)
{
	(void)call;
	char *resolved = realpath(path, NULL);
	if (!resolved) {
		fail("Can't resolve %s: %m", path);
		return SYSEXIT_DISKDESCR;
	}
	struct handle *handle = calloc(1, sizeof *handle);
	if (!handle)
		abort();
	handle->path = resolved;
	*di = &handle->data;
	return 0;
}

int model_ploop_set_component_name(struct call *call, struct ploop_disk_images_data *di, const char *name)
{
	(void)call;
	struct handle *handle = (struct handle *)di;
	free(handle->component);
	handle->component = strdup(name);
	return 0;
}

void model_ploop_close_dd(struct call *call, struct ploop_disk_images_data *di)
{
	(void)call;
	struct handle *handle = (struct handle *)di;
	if (!handle)
		return;
	free(handle->path);
	free(handle->component);
	free(handle);
}

// ---------------------------------------------------------------- the driver

/// The crate and libploop ask `access` whether there is a driver. The program finds this function before that of libc.
__attribute__((visibility("default"))) int access(const char *path, int mode)
{
	if (strcmp(path, "/proc/vz/ploop_minor") == 0) {
		struct call call = { .function = "access" };
		int code;
		read_script(&call);
		bool is_there = scripted_code(&call, &code) && code == 0;
		free(call.script);
		if (is_there)
			return 0;
	}
	return faccessat(AT_FDCWD, path, mode, 0);
}

/// By this name a program finds out that the library is this one.
__attribute__((visibility("default"))) const char *ploop_stub(void)
{
	return "a stub";
}
