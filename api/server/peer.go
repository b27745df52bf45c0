package server

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"vpssnapd/daemon/vps"
)

// peer is the process at the other end of a Unix socket, as the kernel tells.
type peer struct {
	uid, gid uint32
	err      error
}

// root reports whether it is surely root.
func (p peer) root() bool { return p.uid == 0 && p.err == nil }

// owner names the user for limits.
func (p peer) owner() string { return "uid " + strconv.FormatUint(uint64(p.uid), 10) }

type peerKey struct{}

// withPeer is the ConnContext of the Unix listener.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerOf(c))
}

// The kernel noted it when the connection was made (SO_PEERCRED): it cannot be forged.
func peerOf(c net.Conn) peer {
	if counted, ok := c.(*countedConn); ok {
		c = counted.Conn
	}
	unix, ok := c.(*net.UnixConn)
	if !ok {
		return peer{err: fmt.Errorf("a %T is no Unix socket", c)}
	}
	raw, err := unix.SyscallConn()
	if err != nil {
		return peer{err: err}
	}
	var p peer
	err = raw.Control(func(fd uintptr) {
		cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		if err != nil {
			p.err = err
			return
		}
		p.uid, p.gid = cred.Uid, cred.Gid
	})
	if err != nil {
		return peer{err: err}
	}
	return p
}

// operatorOf is the caller behind p: root, or a member of the operators' group. Whoever
// is neither is refused by name, since the answer is for a person on the host.
func operatorOf(p peer, group string) (*caller, error) {
	if p.err != nil {
		return nil, vps.Errorf(vps.CodeForbidden, "cannot tell who calls").Because(p.err)
	}
	uid := strconv.FormatUint(uint64(p.uid), 10)
	name := "uid " + uid
	u, err := user.LookupId(uid)
	if err == nil {
		name = u.Username
	}
	if p.uid != 0 && !member(p, u, group) {
		return nil, vps.Errorf(vps.CodeForbidden, "user %s is not an operator of this host", name).
			WithRemedy("use root or a member of the group %s", group)
	}
	return &caller{
		actor: vps.Actor{Name: name, Way: vps.WayOperator},
		id:    "uid:" + uid,
		root:  p.root(),
		token: vps.Token{Scopes: []vps.Scope{vps.ScopeAdmin}},
	}, nil
}

// member asks for p's group and the groups of its user u, which may be nil. The groups
// are asked for at each connection: a user who left the group has no access any more.
func member(p peer, u *user.User, group string) bool {
	g, err := user.LookupGroup(group)
	if err != nil {
		return false
	}
	if g.Gid == strconv.FormatUint(uint64(p.gid), 10) {
		return true
	}
	if u == nil {
		return false
	}
	ids, err := u.GroupIds()
	return err == nil && slices.Contains(ids, g.Gid)
}
