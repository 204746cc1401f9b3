// Package sockowner finds out which process of this machine holds a UDP port,
// for the error that an operator reads when the port is taken. It reads Linux's
// /proc; elsewhere it finds nothing. It starts no goroutine.
package sockowner

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
)

// Owner is a process that holds a socket.
type Owner struct {
	PID int // 0: the socket is there, but the process cannot be seen by this user
	// Command is the short name of the process, 15 bytes at most, as in
	// /proc/PID/comm. Its arguments are left out: they may hold secrets.
	Command string
}

// UDP returns who holds an IPv4 UDP socket that keeps addr from being bound:
// one bound to addr, one bound to its port on all addresses (an IPv6 wildcard socket
// among them), or, when addr is 0.0.0.0, any on its port. False: there is none now.
func UDP(addr netip.AddrPort) (Owner, bool) { return find("/proc", addr) }

func find(proc string, addr netip.AddrPort) (Owner, bool) {
	inodes := map[string]bool{}
	for _, table := range []string{"udp", "udp6"} { // of the network namespace of this process
		content, err := os.ReadFile(filepath.Join(proc, "net", table))
		if err != nil {
			continue // a kernel without IPv6 has no udp6
		}
		addInodes(inodes, content, addr)
	}
	if len(inodes) == 0 {
		return Owner{}, false
	}
	return process(proc, inodes), true
}

// addInodes adds the inodes of the sockets of a table that are in the way of addr. The
// format is that of proc_pid_net(5): a header, then lines of fields, of which the
// second is the local ADDRESS:PORT and the tenth the inode.
func addInodes(inodes map[string]bool, table []byte, addr netip.AddrPort) {
	lines := bufio.NewScanner(bytes.NewReader(table))
	lines.Scan() // the header
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[9] == "0" { // 0: no process holds it any more
			continue
		}
		local, ok := parseLocal(fields[1])
		if ok && local.Port() == addr.Port() && collide(local.Addr(), addr.Addr().Unmap()) {
			inodes[fields[9]] = true
		}
	}
}

func collide(bound, wanted netip.Addr) bool {
	return bound == wanted || bound.IsUnspecified() || wanted.IsUnspecified() && bound.Is4()
}

// parseLocal reads "0100007F:1110". The kernel prints each 32 bits of the
// address, which are in network order, as a number of this machine; the port is a plain
// number (net/ipv4/udp.c, udp4_format_sock).
func parseLocal(text string) (netip.AddrPort, bool) {
	address, port, _ := strings.Cut(text, ":")
	words, err := hex.DecodeString(address)
	number, portErr := strconv.ParseUint(port, 16, 16)
	if err != nil || portErr != nil || len(words) != 4 && len(words) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	a, _ := netip.AddrFromSlice(words)
	return netip.AddrPortFrom(a.Unmap(), uint16(number)), true
}

// process returns a process that has one of the sockets open.
func process(proc string, inodes map[string]bool) Owner {
	directories, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		return Owner{}
	}
	for _, directory := range directories {
		pid, err := strconv.Atoi(filepath.Base(directory))
		if err != nil {
			continue
		}
		descriptors, err := os.ReadDir(filepath.Join(directory, "fd"))
		if err != nil {
			continue // of another user, or gone
		}
		for _, d := range descriptors {
			target, err := os.Readlink(filepath.Join(directory, "fd", d.Name()))
			if err != nil {
				continue
			}
			inode, isSocket := strings.CutPrefix(target, "socket:[")
			if isSocket && inodes[strings.TrimSuffix(inode, "]")] {
				return Owner{PID: pid, Command: command(directory)}
			}
		}
	}
	return Owner{}
}

func command(directory string) string {
	name, err := os.ReadFile(filepath.Join(directory, "comm"))
	if err != nil {
		return ""
	}
	return strings.Map(func(r rune) rune { // a process chooses its name
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, string(name))
}
