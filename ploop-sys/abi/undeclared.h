// Functions that libploop.so.7 and later export although their headers do not declare them (some declare
// `ploop_copy_receiver`). Included after the declarations of the structures.

#ifndef PLOOP_SYS_UNDECLARED_H
#define PLOOP_SYS_UNDECLARED_H

struct ploop_copy_handle;

/// Opens a handle and reads the descriptor at once. Exported, but not declared by the header.
int ploop_read_disk_descr(struct ploop_disk_images_data **di, const char *file);

/// Begins to copy the image of a device to `param->ofd`: of the handle's device, or of `param->device` where `di` is
/// null. Exported, but not declared by the header.
int ploop_copy_init(struct ploop_disk_images_data *di, struct ploop_copy_param *param,
		struct ploop_copy_handle **h);

/// Sends the whole image while it goes on being written to. Exported, but not declared by the header.
int ploop_copy_start(struct ploop_copy_handle *h, struct ploop_copy_stat *stat);

/// Sends what was written since the last round. Exported, but not declared by the header.
int ploop_copy_next_iteration(struct ploop_copy_handle *h, struct ploop_copy_stat *stat);

/// The last round, for which the file system is frozen. Exported, but not declared by the header.
int ploop_copy_stop(struct ploop_copy_handle *h, struct ploop_copy_stat *stat);

/// Ends a copy and frees its handle. Exported, but not declared by the header.
void ploop_copy_deinit(struct ploop_copy_handle *h);

/// Receives what `ploop_copy_start` and the calls after it send. Not the stream of `ploop_copy_send`. Declared by the
/// headers from 8.0.6 on only.
int ploop_copy_receiver(struct ploop_copy_receive_param *arg);

#endif
