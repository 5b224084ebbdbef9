/* SPDX-License-Identifier: MIT
 *
 * The part of QEMU's plugin interface that a72_plugin.c uses: declarations written for this project
 * from the interface's documentation, so that no header of QEMU is needed.
 *
 * Version 1 is that of QEMU 6.0 to 8.2. QEMU 9.0 and later refuse it and take 2, by which they offer
 * all that their own version has.
 */
#ifndef QEMU_PLUGIN_API_H
#define QEMU_PLUGIN_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t plugin_id;
typedef uint32_t meminfo;
struct plugin_info {
    const char *target;
    struct {
        int least, current;
    } version;
};
struct plugin_tb;
struct plugin_insn;
enum { CB_NO_REGS = 0 };
enum { MEM_READ = 1, MEM_WRITE = 2, MEM_BOTH = 3 };
typedef void (*udata_cb)(unsigned vcpu, void *data);
typedef void (*mem_cb)(unsigned vcpu, meminfo info, uint64_t address, void *data);
typedef void (*trans_cb)(plugin_id id, struct plugin_tb *tb);
typedef void (*end_cb)(plugin_id id, void *data);
typedef void (*syscall_cb)(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2,
                           uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                           uint64_t a8);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, trans_cb cb);
void qemu_plugin_register_vcpu_tb_exec_cb(struct plugin_tb *tb, udata_cb cb, int flags, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct plugin_insn *insn, mem_cb cb, int flags, int rw,
                                      void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, syscall_cb cb);
void qemu_plugin_register_atexit_cb(plugin_id id, end_cb cb, void *data);
size_t qemu_plugin_tb_n_insns(const struct plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct plugin_tb *tb);
struct plugin_insn *qemu_plugin_tb_get_insn(const struct plugin_tb *tb, size_t index);
/* Copies, and gives the size; before version 3 it takes the instruction alone, and gives a pointer. */
uintptr_t qemu_plugin_insn_data(const struct plugin_insn *insn, void *copy, size_t size);
size_t qemu_plugin_insn_size(const struct plugin_insn *insn);
void *qemu_plugin_insn_haddr(const struct plugin_insn *insn);
bool qemu_plugin_mem_is_store(meminfo info);
unsigned qemu_plugin_mem_size_shift(meminfo info);
int qemu_plugin_n_vcpus(void) __attribute__((weak)); /* of version 1 only */

#define EXPORT __attribute__((visibility("default")))

#endif
