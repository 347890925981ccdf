/* A Vulkan layer that makes a software driver's device small: as many bytes as a file says, for all processes together.
 *
 * A software driver takes main memory and never says that its own is used up. With this layer allocations are counted,
 * one beyond the limit fails as on a real device, and the free memory that is reported is what is left.
 * AYAEDGE_SMALL_DEVICE names the file: struct device. What a process held when it ended is given back by nobody. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

struct device {
    uint64_t limit;
    _Atomic uint64_t used, peak, refused;
};

enum { MOST = 4096 };
static struct { VkDeviceMemory memory; uint64_t size; } held[MOST];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct device *shared;
static PFN_vkGetInstanceProcAddr next_instance; /* of one instance and one device at a time, as llama.cpp has them */
static PFN_vkGetDeviceProcAddr next_device;
static PFN_vkAllocateMemory next_allocate;
static PFN_vkFreeMemory next_free;
static PFN_vkGetPhysicalDeviceMemoryProperties2 next_properties;
static PFN_vkEnumerateDeviceExtensionProperties next_extensions;
static VkInstance instance;

static struct device *counts(void) {
    pthread_mutex_lock(&lock);
    if (!shared) {
        int file = open(getenv("AYAEDGE_SMALL_DEVICE"), O_RDWR);
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (shared == MAP_FAILED) abort();
    }
    pthread_mutex_unlock(&lock);
    return shared;
}

static VkResult allocate(VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *calls,
                         VkDeviceMemory *memory) {
    struct device *all = counts();
    uint64_t now = atomic_fetch_add(&all->used, info->allocationSize) + info->allocationSize;
    VkResult result = now > all->limit ? VK_ERROR_OUT_OF_DEVICE_MEMORY : next_allocate(device, info, calls, memory);
    if (result != VK_SUCCESS) {
        atomic_fetch_sub(&all->used, info->allocationSize);
        atomic_fetch_add(&all->refused, 1);
        return result;
    }
    uint64_t peak = atomic_load(&all->peak);
    while (now > peak && !atomic_compare_exchange_weak(&all->peak, &peak, now)) {}
    pthread_mutex_lock(&lock);
    int place = 0;
    while (place < MOST && held[place].memory) place++;
    if (place == MOST) abort();
    held[place].memory = *memory;
    held[place].size = info->allocationSize;
    pthread_mutex_unlock(&lock);
    return result;
}

static void release(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks *calls) {
    pthread_mutex_lock(&lock);
    for (int place = 0; memory && place < MOST; place++)
        if (held[place].memory == memory) {
            atomic_fetch_sub(&shared->used, held[place].size);
            held[place].memory = VK_NULL_HANDLE;
            break;
        }
    pthread_mutex_unlock(&lock);
    next_free(device, memory, calls);
}

static void properties(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties2 *found) {
    struct device *all = counts();
    next_properties(device, found);
    found->memoryProperties.memoryHeaps[0].size = all->limit;
    for (VkBaseOutStructure *more = found->pNext; more; more = more->pNext)
        if (more->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT) {
            VkPhysicalDeviceMemoryBudgetPropertiesEXT *budget = (void *)more;
            budget->heapBudget[0] = all->limit;
            budget->heapUsage[0] = atomic_load(&all->used);
        }
}

/* The budget is an extension that real drivers have, and this one has not. */
static VkResult extensions(VkPhysicalDevice device, const char *layer, uint32_t *count, VkExtensionProperties *found) {
    uint32_t own = 0, room = *count;
    VkResult result = next_extensions(device, layer, &own, NULL);
    if (result != VK_SUCCESS || layer) return layer ? next_extensions(device, layer, count, found) : result;
    *count = own + 1;
    if (!found) return VK_SUCCESS;
    if (room <= own) return VK_INCOMPLETE;
    result = next_extensions(device, NULL, &own, found);
    strcpy(found[own].extensionName, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    found[own].specVersion = 1;
    return result;
}

static VkResult make_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *calls, VkInstance *made) {
    VkLayerInstanceCreateInfo *chain = (void *)info->pNext;
    while (chain->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO || chain->function != VK_LAYER_LINK_INFO)
        chain = (void *)chain->pNext;
    next_instance = chain->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    chain->u.pLayerInfo = chain->u.pLayerInfo->pNext;
    VkResult result = ((PFN_vkCreateInstance)next_instance(NULL, "vkCreateInstance"))(info, calls, made);
    instance = *made;
    next_properties = (PFN_vkGetPhysicalDeviceMemoryProperties2)next_instance(
        *made, "vkGetPhysicalDeviceMemoryProperties2"); /* now: later the loader would give this layer's own */
    next_extensions = (PFN_vkEnumerateDeviceExtensionProperties)next_instance(
        *made, "vkEnumerateDeviceExtensionProperties");
    return result;
}

static VkResult make_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                            const VkAllocationCallbacks *calls, VkDevice *made) {
    VkLayerDeviceCreateInfo *chain = (void *)info->pNext;
    while (chain->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO || chain->function != VK_LAYER_LINK_INFO)
        chain = (void *)chain->pNext;
    PFN_vkGetInstanceProcAddr next = chain->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    next_device = chain->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    chain->u.pLayerInfo = chain->u.pLayerInfo->pNext;
    VkResult result = ((PFN_vkCreateDevice)next(instance, "vkCreateDevice"))(physical, info, calls, made);
    if (result == VK_SUCCESS) {
        next_allocate = (PFN_vkAllocateMemory)next_device(*made, "vkAllocateMemory");
        next_free = (PFN_vkFreeMemory)next_device(*made, "vkFreeMemory");
    }
    return result;
}

PFN_vkVoidFunction small_device_device(VkDevice device, const char *name) {
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)small_device_device;
    if (!strcmp(name, "vkAllocateMemory")) return (PFN_vkVoidFunction)allocate;
    if (!strcmp(name, "vkFreeMemory")) return (PFN_vkVoidFunction)release;
    return next_device ? next_device(device, name) : NULL;
}

PFN_vkVoidFunction small_device_instance(VkInstance of, const char *name) {
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)small_device_instance;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)small_device_device;
    if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)make_instance;
    if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)make_device;
    if (!strcmp(name, "vkAllocateMemory")) return (PFN_vkVoidFunction)allocate;
    if (!strcmp(name, "vkFreeMemory")) return (PFN_vkVoidFunction)release;
    if (!strcmp(name, "vkGetPhysicalDeviceMemoryProperties2") || !strcmp(name, "vkGetPhysicalDeviceMemoryProperties2KHR"))
        return (PFN_vkVoidFunction)properties;
    if (!strcmp(name, "vkEnumerateDeviceExtensionProperties")) return (PFN_vkVoidFunction)extensions;
    return next_instance ? next_instance(of, name) : NULL;
}
