package sockholder

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The descriptors that a holder process inherits.
const (
	controlFD = 3 // its end of the socket pair: SOCK_SEQPACKET, so that messages have ends and the end of the peer shows
	flagsFD   = 4 // a memfd with a flag for each slot
)

// op is what a message says of a slot.
type op byte

const (
	opHold    op = 1 // with a descriptor: keep it
	opDrop    op = 2 // the connection has ended
	opRelease op = 3 // the connection is the holder's alone
)

// message is an op, three bytes of nothing and the number of a slot.
type message [8]byte

func newMessage(o op, slot int) message {
	m := message{byte(o)}
	binary.NativeEndian.PutUint32(m[4:], uint32(slot))
	return m
}

func (m message) parse() (op, int) { return op(m[0]), int(binary.NativeEndian.Uint32(m[4:])) }

// flags are shared by the two processes; 1 says that a request is outstanding.
type flags []atomic.Uint32

const flagSize = 4

func mapFlags(fd, slots int) (flags, error) {
	b, err := unix.Mmap(fd, 0, slots*flagSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map flags: %w", err)
	}
	return unsafe.Slice((*atomic.Uint32)(unsafe.Pointer(unsafe.SliceData(b))), slots), nil
}

func (f flags) unmap() {
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), len(f)*flagSize)
	_ = unix.Munmap(b)
}
