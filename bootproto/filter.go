package bootproto

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A filter on a UDP socket sees a datagram from its UDP header on (udp(7), RFC 768).
const (
	udpSourcePort = 0
	udpHeader     = 8
)

// queryFilter is a program for the kernel, which runs it on each datagram before that takes
// any of the socket's buffer: what cannot be a request costs this process nothing, and does
// not keep requests out. It lets through everything that parseQuery accepts, and only
// looks at the length, the first bytes and the source port: the rest is cheaper here.
func queryFilter() []bpf.Instruction {
	const drop, keep = 0, 1 << 16 // bytes of the datagram
	prefix := []byte(queryPrefix)
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: uint32(udpHeader + len(queryPrefix)), SkipTrue: 8},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(udpHeader + maxQuery), SkipTrue: 7},
		bpf.LoadAbsolute{Off: udpSourcePort, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 5},
		bpf.LoadAbsolute{Off: udpHeader, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(prefix[:4]), SkipTrue: 3},
		bpf.LoadAbsolute{Off: udpHeader + 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16(prefix[4:])), SkipTrue: 1},
		bpf.RetConstant{Val: keep},
		bpf.RetConstant{Val: drop},
	}
}

// attachFilter has the kernel run queryFilter. It needs no privilege. Where the kernel knows
// no filters (some sandboxes are none of Linux), junk is dropped here, as parseQuery does.
func attachFilter(fd int) error {
	program, err := bpf.Assemble(queryFilter())
	if err != nil {
		return fmt.Errorf("assemble the filter for requests: %w", err)
	}
	raw := make([]unix.SockFilter, len(program))
	for i, in := range program {
		raw[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]})
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("attach the filter for requests: %w", err)
	}
	return nil
}
