package bootproto

import (
	"errors"

	"eboot/bootproto/etf"
)

// operation is what a request asks for.
type operation byte

// The operations. The first five have names on the wire.
const (
	opGet operation = iota
	opListDir
	opReadFileInfo
	opReadLinkInfo
	opGetCwd
	operations    // how many have names
	opUnknown     // a term that is no request
	opUndecodable // no term
)

// operationNames are the atoms of requests and replies
// (erl_boot_server:handle_command/3).
var operationNames = [operations]string{"get", "list_dir", "read_file_info", "read_link_info", "get_cwd"}

func (op operation) String() string {
	switch op {
	case opUnknown:
		return "unknown"
	case opUndecodable:
		return "undecodable"
	}
	return operationNames[op]
}

// fault is what is wrong with the argument of a request.
type fault byte

// The faults, as prim_file names them.
const (
	faultNone    fault = iota
	faultBadarg        // not a file name, or not a drive
	faultEinval        // get_cwd of something that is no drive
	faultEnotsup       // get_cwd of a drive: only Windows has them
	faults             // how many there are
)

var faultNames = [faults]string{"", "badarg", "einval", "enotsup"}

// request is one decoded frame.
type request struct {
	op    operation
	fault fault
	name  []byte // UTF-8, of the operations that have one
}

// parseRequest decodes a frame. The name is appended to scratch, which it may
// outgrow.
func parseRequest(frame, scratch []byte) request {
	d, err := etf.NewDecoder(frame)
	if err != nil {
		return request{op: opUndecodable, name: scratch}
	}
	whole := d
	first, err := d.Next()
	if err != nil {
		return request{op: opUndecodable, name: scratch}
	}
	if first.Kind == etf.Tuple && first.Len == 2 {
		tag, err := d.Next()
		if op, ok := operationOf(tag); err == nil && ok {
			return parseArgument(op, d, scratch)
		}
	}
	if (first.Kind == etf.Atom || first.Kind == etf.LatinAtom) && string(first.Bytes) == operationNames[opGetCwd] {
		return request{op: opGetCwd, name: scratch}
	}
	if whole.Skip() != nil {
		return request{op: opUndecodable, name: scratch}
	}
	return request{op: opUnknown, name: scratch}
}

func operationOf(tag etf.Token) (operation, bool) {
	if tag.Kind == etf.Atom || tag.Kind == etf.LatinAtom {
		for op, name := range operationNames {
			if string(tag.Bytes) == name {
				return operation(op), true
			}
		}
	}
	return 0, false
}

// parseArgument decodes the second element of {Operation, Argument}.
func parseArgument(op operation, d etf.Decoder, scratch []byte) request {
	argument := d
	name, err := d.AppendName(scratch)
	switch {
	case errors.Is(err, etf.ErrMalformed):
		return request{op: opUndecodable, name: name}
	case op == opGetCwd:
		return request{op: op, fault: driveFault(argument, name, err), name: name}
	case err != nil:
		return request{op: op, fault: faultBadarg, name: name}
	default:
		return request{op: op, name: name}
	}
}

// driveFault is the answer of prim_file:get_cwd/1 on a system without drives:
// enotsup to a letter and a colon, einval to any other list, badarg to the rest.
func driveFault(argument etf.Decoder, name []byte, nameErr error) fault {
	t, err := argument.Next()
	switch {
	case err != nil || t.Kind != etf.String && t.Kind != etf.List || t.Len == 0:
		return faultBadarg
	case nameErr == nil && t.Len == 2 && len(name) == 2 && isLetter(name[0]) && name[1] == ':':
		return faultEnotsup
	default:
		return faultEinval
	}
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
