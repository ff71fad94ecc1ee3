// Included before the ops' sources: sends their libtorch calls through the software device, whose memory is the CPU's.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

AOTITorchError software_get_data_ptr(AtenTensorHandle, void**);
AOTITorchError software_get_device_type(AtenTensorHandle, int32_t*);
AOTITorchError software_get_device_index(AtenTensorHandle, int32_t*);
AOTITorchError software_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                                      AtenTensorHandle*);
AOTITorchError software_create_device_guard(int32_t, DeviceGuardHandle*);
AOTITorchError software_delete_device_guard(DeviceGuardHandle);
AOTITorchError software_library_init_impl(const char*, const char*, const char*, uint32_t, TorchLibraryHandle*);

#define aoti_torch_get_data_ptr software_get_data_ptr
#define aoti_torch_get_device_type software_get_device_type
#define aoti_torch_get_device_index software_get_device_index
#define aoti_torch_empty_strided software_empty_strided
#define aoti_torch_create_device_guard software_create_device_guard
#define aoti_torch_delete_device_guard software_delete_device_guard
#define aoti_torch_library_init_impl software_library_init_impl
