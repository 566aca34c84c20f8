// The stub's own interface: what the generated functions and the models use to record a call and to follow a script.
//
// `PLOOP_STUB_RECORD` names the file of the record, to which each call appends lines of words between tabs:
//
//     call    FUNCTION
//     NAME    number    DECIMAL
//     NAME    text      HEXADECIMAL       a text, without its terminator
//     NAME    bytes     HEXADECIMAL       a whole structure, padding included
//     NAME    handle    HEXADECIMAL       the path that the handle was opened with; then `NAME.component`, if it has one
//     NAME    pointer   set               a buffer or the like
//     NAME    null      -
//     end     FUNCTION  DECIMAL           what it returned
//
// `PLOOP_STUB_SCRIPT` names a file of lines that say what a function does:
//
//     FUNCTION code NUMBER                it does nothing and returns this
//     FUNCTION error TEXT                 its error text
//     FUNCTION prints TEXT                to standard output
//     FUNCTION warns TEXT                 to standard error
//     FUNCTION out NAME VALUE             what it puts into an output parameter or member: a number or a text
//     FUNCTION does WORD                  for the models: which of the dangerous things it does
//
// `access code 0` has it look as if there were a driver. A function whose lines begin `FUNCTION#2` follows them in its second call since the script was written, and in no other.

#ifndef STUB_H
#define STUB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct call;

// ---------------------------------------------------------------- for the generated functions

struct call *call_begin(const char *function);
void put_number(struct call *call, const char *name, long long value);
void put_text(struct call *call, const char *name, const char *text);
void put_pointer(struct call *call, const char *name, const volatile void *pointer);
void put_handle(struct call *call, const char *name, const void *handle);
/// Whether there is a structure.
bool put_bytes(struct call *call, const char *name, const void *bytes, size_t len);
/// The parameters are complete, and can be written to the record.
void call_written(struct call *call);
/// Whether the script says what the function returns.
bool scripted_code(struct call *call, int *code);
void take_text(struct call *call, const char *name, char *out, long long len);
void take_bytes(struct call *call, const char *name, char *out, size_t len);
bool scripted_number(struct call *call, const char *name, long long *value);
#define TAKE_NUMBER(call, name, out)                                 \
	do {                                                         \
		long long value;                                     \
		if ((out) && scripted_number(call, name, &value))    \
			*(out) = (__typeof__(*(out)))value;          \
	} while (0)
void call_end(struct call *call, long long code);

// ---------------------------------------------------------------- for the models

/// Whether the script has `does WORD` for this call.
bool does(const struct call *call, const char *word);
/// The value of `WORD` in the script, or null. It lives as long as the call.
const char *script_value(const struct call *call, const char *word);
/// The value of `out NAME` in the script, or null.
const char *script_out(const struct call *call, const char *name);
/// Sets the thread's error text.
__attribute__((format(printf, 1, 2))) void fail(const char *format, ...);
char *error_buffer(void);
/// The path that a handle was opened with.
const char *handle_path(const void *handle);

#endif
