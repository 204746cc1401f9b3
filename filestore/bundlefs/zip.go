package bundlefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"eboot"
)

// The parts of a zip file, PKWARE APPNOTE.TXT 4.3. This reader is as small as
// prim_zip of OTP, whose archives it serves: one disk, no zip64, stored or
// deflated. The common readers parse a central directory of any length before they can
// be asked how long it is, and 46 bytes of it cost them some 300 of memory.
const (
	localHeader   = "PK\x03\x04"
	centralHeader = "PK\x01\x02"
	endRecord     = "PK\x05\x06"

	localSize   = 30
	centralSize = 46
	endSize     = 22

	methodStore   = 0
	methodDeflate = 8

	flagEncrypted = 1

	maxDirectory = 16 << 20 // bytes of a central directory
	ratioFloor   = 1 << 20  // small archives of zeros are no bombs
)

// errNoArchive: the file is no zip, or one that is broken or beyond the limits.
var errNoArchive = errors.New("no readable archive")

// archive is the directory of one .ez file. Names are clean paths.
type archive struct {
	size  int64 // bytes of the file
	files map[string]member
	dirs  map[string]*directory // "" is the top
}

type member struct {
	offset  int64 // of the local header
	packed  int64 // bytes in the archive
	size    int64 // bytes unpacked
	modTime int64
	method  uint16
	crc     uint32
}

type directory struct {
	names   []string // sorted
	entry   bool     // has an entry of its own; modTime is from there
	modTime int64
}

// readArchive reads the central directory of a zip of size bytes. errNoArchive:
// it is none; any other error is that of r.
func readArchive(r io.ReaderAt, size int64, limits ArchiveLimits) (*archive, error) {
	central, entries, err := readCentral(r, size, limits)
	if err != nil {
		return nil, err
	}
	a := &archive{size: size, files: make(map[string]member), dirs: map[string]*directory{"": {}}}
	var total int64
	for range entries {
		if len(central) < centralSize || string(central[:4]) != centralHeader {
			return nil, fmt.Errorf("bad entry: %w", errNoArchive)
		}
		h := central
		nameEnd := centralSize + int(le16(h[28:]))
		next := nameEnd + int(le16(h[30:])) + int(le16(h[32:]))
		if len(central) < next {
			return nil, fmt.Errorf("entry cut off: %w", errNoArchive)
		}
		name := latin1(h[centralSize:nameEnd])
		central = central[next:]
		m := member{
			offset:  int64(le32(h[42:])),
			packed:  int64(le32(h[20:])),
			size:    int64(le32(h[24:])),
			modTime: dosTime(le16(h[14:]), le16(h[12:])),
			method:  le16(h[10:]),
			crc:     le32(h[16:]),
		}
		if le16(h[8:])&flagEncrypted != 0 {
			m.method = 0xffff
		}
		if m.size > limits.FileSize {
			return nil, fmt.Errorf("member of %d bytes: %w", m.size, errNoArchive)
		}
		if total += m.size; total > limits.TotalSize || total > max(ratioFloor, limits.Ratio*size) {
			return nil, fmt.Errorf("members of %d bytes: %w", total, errNoArchive)
		}
		a.add(name, m)
		if len(a.files)+len(a.dirs) > limits.Entries {
			return nil, fmt.Errorf("too many names: %w", errNoArchive)
		}
	}
	for _, d := range a.dirs {
		slices.Sort(d.names)
		d.names = slices.Clip(d.names)
	}
	return a, nil
}

// readCentral finds the central directory and reads it whole.
func readCentral(r io.ReaderAt, size int64, limits ArchiveLimits) (central []byte, entries int, err error) {
	tail := make([]byte, min(size, endSize+0xffff))
	if err := readAt(r, tail, size-int64(len(tail))); err != nil {
		return nil, 0, err
	}
	at := len(tail)
	for {
		at = bytes.LastIndex(tail[:at], []byte(endRecord))
		if at < 0 {
			return nil, 0, fmt.Errorf("no end record: %w", errNoArchive)
		}
		if rest := len(tail) - at; rest >= endSize && rest == endSize+int(le16(tail[at+20:])) {
			break
		}
	}
	end := tail[at:]
	entries = int(le16(end[10:]))
	length, offset := int64(le32(end[12:])), int64(le32(end[16:]))
	switch {
	case le16(end[4:]) != 0 || le16(end[6:]) != 0 || le16(end[8:]) != le16(end[10:]):
		return nil, 0, fmt.Errorf("several disks: %w", errNoArchive)
	case entries == 0 || entries > limits.Entries:
		return nil, 0, fmt.Errorf("%d entries: %w", entries, errNoArchive)
	case length > maxDirectory || offset+length > size-int64(len(end)):
		return nil, 0, fmt.Errorf("directory of %d bytes at %d: %w", length, offset, errNoArchive)
	}
	central = make([]byte, length)
	return central, entries, readAt(r, central, offset)
}

// add enters one name and the directories above it. Names that no clean path can
// reach are left out; of several equal names the first counts, as for prim_zip.
func (a *archive) add(name string, m member) {
	name, isDir := strings.CutSuffix(name, "/")
	if name == "" || name[0] == '/' || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") || strings.IndexByte(name, 0) >= 0 {
		return
	}
	if isDir {
		if d := a.directory(name); !d.entry {
			d.entry, d.modTime = true, m.modTime
		}
		return
	}
	if _, twice := a.files[name]; twice {
		return
	}
	if _, listed := a.dirs[name]; !listed {
		a.directory(parentPath(name)).enter(name)
	}
	a.files[name] = m
}

// directory returns the directory name, entering it and those above when new.
func (a *archive) directory(name string) *directory {
	if d, ok := a.dirs[name]; ok {
		return d
	}
	d := &directory{}
	a.dirs[name] = d
	if _, listed := a.files[name]; !listed {
		a.directory(parentPath(name)).enter(name)
	}
	return d
}

func (d *directory) enter(name string) { d.names = append(d.names, path.Base(name)) }

func parentPath(p string) string { return p[:max(strings.LastIndexByte(p, '/'), 0)] }

// list returns the names in a directory of the archive. A file and a missing
// name are ENOTDIR, as in prim_list_dir of erl_prim_loader.
func (a *archive) list(name string) ([]string, error) {
	d, ok := a.dirs[name]
	if !ok {
		return nil, syscall.ENOTDIR
	}
	return slices.Clone(d.names), nil
}

// stat describes a member as prim_read_file_info of erl_prim_loader does: a
// directory without an entry of its own, and the archive itself, have the size and the time of
// the archive.
func (a *archive) stat(name string, slash bool, archiveTime int64) (Info, error) {
	if d, ok := a.dirs[name]; ok {
		if d.entry {
			return Info{Kind: eboot.KindDirectory, ModTime: d.modTime}, nil
		}
		return Info{Kind: eboot.KindDirectory, Size: a.size, ModTime: archiveTime}, nil
	}
	if m, ok := a.files[name]; ok && !slash {
		return Info{Kind: eboot.KindFile, Size: m.size, ModTime: m.modTime}, nil
	}
	return Info{}, syscall.ENOENT
}

// section returns the packed bytes of m.
func (m member) section(r io.ReaderAt, size int64) (*io.SectionReader, error) {
	if m.method != methodStore && m.method != methodDeflate {
		return nil, fmt.Errorf("compression %d: %w", m.method, errBadMember)
	}
	var h [localSize]byte
	if m.offset+localSize > size {
		return nil, fmt.Errorf("header outside: %w", errBadMember)
	}
	if err := readAt(r, h[:], m.offset); err != nil {
		return nil, err
	}
	start := m.offset + localSize + int64(le16(h[26:])) + int64(le16(h[28:]))
	if string(h[:4]) != localHeader || start+m.packed > size || m.method == methodStore && m.packed != m.size {
		return nil, fmt.Errorf("bad local header: %w", errBadMember)
	}
	return io.NewSectionReader(r, start, m.packed), nil
}

// readAt fills buf, which the caller knows to lie within the file. A file that
// ends early is no archive; other errors pass.
func readAt(r io.ReaderAt, buf []byte, offset int64) error {
	n, err := r.ReadAt(buf, offset)
	switch {
	case n == len(buf):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("cut off: %w", errNoArchive)
	}
	return err
}

// latin1 reads a name as prim_zip does, one character a byte, whatever the
// archive says of its encoding.
func latin1(b []byte) string {
	for _, c := range b {
		if c >= 0x80 {
			runes := make([]rune, len(b))
			for i, c := range b {
				runes[i] = rune(c)
			}
			return string(runes)
		}
	}
	return string(b)
}

// dosTime reads the time of an entry. Like prim_zip it takes the two-second count
// for seconds, and the local time of whoever packed it for ours.
func dosTime(date, clock uint16) int64 {
	return time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31),
		int(clock>>11), int(clock>>5&63), int(clock&31), 0, time.UTC).Unix()
}

func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
