// Lets binaries that are built with a newer glibc on Linux x86-64 run with glibc 2.28, the oldest that torch runs with.
//
// The linker takes the newest version of a function, and an older glibc lacks that version. So each function below is a
// hidden one of ours that jumps to an old version. It serves our objects and the static libraries in a binary (the C++
// and the CUDA runtime). The linker drops what a binary does not call. If a function is missing here,
// tests/packaging/test_wheel.py and `make wheel` fail and name it.
#include <cstdlib>  // defines __GLIBC__

#if defined(__x86_64__) && defined(__GLIBC__)

asm(R"(
  .macro old version, names:vararg
  .irp name, \names
  .symver old_\name, \name@GLIBC_\version
  .pushsection .text.\name, "ax"
  .hidden \name
  .globl \name
\name:
  jmp *old_\name@GOTPCREL(%rip)
  .popsection
  .endr
  .endm

  old 2.2.5, exp, hypot, log
)");

#if __GLIBC_PREREQ(2, 34)  // which merged libpthread, libdl and librt; before, these functions had no newer version
asm(R"(
  old 2.2.5, dlclose, dlerror, dlopen, dlsym, dlvsym
  old 2.3.4, dlmopen
  old 2.2.5, pthread_condattr_setpshared, pthread_create, pthread_detach, pthread_join, pthread_kill, pthread_once
  old 2.2.5, pthread_getspecific, pthread_key_create, pthread_key_delete, pthread_setspecific
  old 2.2.5, pthread_mutex_trylock, pthread_mutexattr_destroy, pthread_mutexattr_init
  old 2.2.5, pthread_mutexattr_setpshared, pthread_mutexattr_settype
  old 2.2.5, pthread_rwlock_destroy, pthread_rwlock_init, pthread_rwlock_rdlock, pthread_rwlock_timedrdlock
  old 2.2.5, pthread_rwlock_timedwrlock, pthread_rwlock_tryrdlock, pthread_rwlock_trywrlock, pthread_rwlock_unlock
  old 2.2.5, pthread_rwlock_wrlock
  old 2.2.5, pthread_rwlockattr_destroy, pthread_rwlockattr_init, pthread_rwlockattr_setpshared
  old 2.2.5, pthread_spin_destroy, pthread_spin_init, pthread_spin_lock, pthread_spin_trylock, pthread_spin_unlock
  old 2.2.5, sem_destroy, sem_init, sem_post, sem_timedwait, sem_trywait, sem_wait
  old 2.2.5, shm_open, shm_unlink
)");
#endif

// glibc 2.32 says here whether the process has one thread. 0 is always right: the C++ runtime then counts atomically.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

#endif
