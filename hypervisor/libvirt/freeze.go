package libvirt

/*
#cgo pkg-config: libvirt
#include <stdlib.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

// freeze is one function, as libvirt keeps its last error by thread.
static int freeze(virConnectPtr c, const char *uuid, virErrorPtr err)
{
	int frozen = -1;
	virDomainPtr d = virDomainLookupByUUIDString(c, uuid);
	if (d)
		frozen = virDomainFSFreeze(d, NULL, 0, 0);
	if (frozen < 0)
		virCopyLastError(err);
	if (d)
		virDomainFree(d);
	virConnectClose(c);
	return frozen;
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// freezeAll freezes the guest's file systems. Not by the binding's FSFreeze, which throws
// away how many the agent froze: of a guest that has none it also succeeds.
func freezeAll(d *libvirt.Domain) error {
	id, err := d.GetUUIDString()
	if err != nil {
		return err
	}
	c, err := d.DomainGetConnect()
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.RawPtr() // a reference of its own, which freeze gives back
	if err != nil {
		return err
	}
	uuid := C.CString(id)
	defer C.free(unsafe.Pointer(uuid))
	var failure C.virError
	switch frozen := C.freeze(C.virConnectPtr(unsafe.Pointer(raw)), uuid, &failure); {
	case frozen < 0:
		defer C.virResetError(&failure)
		return libvirt.Error{
			Code: libvirt.ErrorNumber(failure.code), Domain: libvirt.ErrorDomain(failure.domain),
			Message: C.GoString(failure.message), Level: libvirt.ErrorLevel(failure.level),
		}
	case frozen == 0:
		return fmt.Errorf("%w: it froze 0 file systems", hypervisor.ErrNothingFrozen)
	}
	return nil
}
