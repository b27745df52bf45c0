package qemuimg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The part of the NBD protocol that a reader needs: the fixed newstyle handshake
// with NBD_OPT_GO, and simple replies to NBD_CMD_READ. Numbers are big-endian.
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
const (
	nbdMagic        = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOption       = 0x49484156454f5054 // "IHAVEOPT"
	nbdOptionReply  = 0x0003e889045565a9
	nbdRequest      = 0x25609513
	nbdSimpleReply  = 0x67446698
	nbdFixed        = 1 << 0 // newstyle, of both sides
	nbdGo           = 7
	nbdAck          = 1
	nbdInfo         = 3
	nbdInfoExport   = 0
	nbdMostInOption = 4 << 10 // bytes that a server may add to a reply
	nbdMostAtOnce   = 1 << 20 // any server accepts this much

	// nbdTime is how long the storage may take for one answer.
	nbdTime = time.Minute
)

// negotiate opens the one export of a server and returns its size.
func negotiate(conn net.Conn) (size int64, err error) {
	if err := conn.SetDeadline(time.Now().Add(shortTime)); err != nil {
		return 0, err
	}
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(conn, binary.BigEndian, &hello); err != nil {
		return 0, fmt.Errorf("qemu-nbd's greeting: %w", err)
	}
	if hello.Magic != nbdMagic || hello.Option != nbdOption || hello.Flags&nbdFixed == 0 {
		return 0, errors.New("qemu-nbd speaks another protocol")
	}
	var ask bytes.Buffer
	for _, v := range []any{
		uint32(nbdFixed),
		uint64(nbdOption), uint32(nbdGo), uint32(6), // bytes that follow
		uint32(0), // of the export's name
		uint16(0), // requests for more
	} {
		_ = binary.Write(&ask, binary.BigEndian, v)
	}
	if _, err := conn.Write(ask.Bytes()); err != nil {
		return 0, err
	}
	for size = -1; ; {
		kind, data, err := optionReply(conn)
		switch {
		case err != nil:
			return 0, fmt.Errorf("qemu-nbd's answer: %w", err)
		case kind == nbdInfo && len(data) >= 10 && binary.BigEndian.Uint16(data) == nbdInfoExport:
			size = int64(binary.BigEndian.Uint64(data[2:])) //nolint:gosec // a negative one is refused below
		case kind == nbdAck && size >= 0:
			return size, nil
		case kind != nbdInfo:
			return 0, fmt.Errorf("qemu-nbd refuses its export (%#x, size %d)", kind, size)
		}
	}
}

// optionReply reads one reply of the handshake. A length that no server sends is refused
// before memory is taken for it.
func optionReply(from io.Reader) (kind uint32, data []byte, err error) {
	var head struct {
		Magic                uint64
		Option, Kind, Length uint32
	}
	if err := binary.Read(from, binary.BigEndian, &head); err != nil {
		return 0, nil, err
	}
	if head.Magic != nbdOptionReply || head.Option != nbdGo || head.Length > nbdMostInOption {
		return 0, nil, errors.New("it is no reply to what was asked")
	}
	data = make([]byte, head.Length)
	_, err = io.ReadFull(from, data)
	return head.Kind, data, err
}

// reads sends one request at a time. After an error nothing is known of what is
// on its way, so that there is no next request.
type reads struct {
	mu     sync.Mutex
	cookie uint64
	failed error
}

// readAt reads in parts that the server takes. After a failure the connection is in an
// unknown state, so each later read fails with the first error.
func (r *reads) readAt(conn net.Conn, p []byte, offset int64) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n < len(p) && r.failed == nil {
		part := p[n:min(len(p), n+nbdMostAtOnce)]
		if err := r.read(conn, part, offset+int64(n)); err != nil {
			r.failed = fmt.Errorf("cannot read %d bytes at %d: %w", len(part), offset+int64(n), err)
			break
		}
		n += len(part)
	}
	return n, r.failed
}

// read asks for one part and waits for the reply with the same cookie.
func (r *reads) read(conn net.Conn, p []byte, offset int64) error {
	if err := conn.SetDeadline(time.Now().Add(nbdTime)); err != nil {
		return err
	}
	r.cookie++
	request := struct {
		Magic       uint32
		Flags, Kind uint16
		Cookie      uint64
		Offset      int64
		Length      uint32
	}{Magic: nbdRequest, Cookie: r.cookie, Offset: offset, Length: uint32(len(p))} //nolint:gosec // nbdMostAtOnce
	if err := binary.Write(conn, binary.BigEndian, request); err != nil {
		return err
	}
	var reply struct {
		Magic, Error uint32
		Cookie       uint64
	}
	if err := binary.Read(conn, binary.BigEndian, &reply); err != nil {
		return err
	}
	if reply.Magic != nbdSimpleReply || reply.Cookie != r.cookie {
		return errors.New("qemu-nbd answers something else")
	}
	if reply.Error != 0 {
		return fmt.Errorf("qemu-nbd says error %d", reply.Error)
	}
	_, err := io.ReadFull(conn, p)
	return err
}
