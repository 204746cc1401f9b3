package eboot

import (
	"bytes"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of one bundle. They bound what a manifest can make a server allocate.
const (
	MaxTreeEntries  = 400_000
	MaxFileSize     = math.MaxUint32 - 64 // a reply is one {packet,4} frame: 4 bytes of length
	MaxTreeBytes    = 16 << 30
	MaxPathLength   = 4096
	MaxManifestSize = 128 << 20
)

// Kind is what an entry of a tree is.
type Kind byte

// The kinds of entries. Devices, sockets and hard links have no place in a bundle.
const (
	KindDirectory Kind = 'd'
	KindFile      Kind = 'f'
	KindSymlink   Kind = 'l'
)

// ManifestEntry is one name in the tree of a bundle.
type ManifestEntry struct {
	Path   string // relative, slash-separated, clean; the root itself has no entry
	Kind   Kind
	Exec   bool   // files: the owner's executable bit
	Size   int64  // files: length in bytes
	Digest Digest // files: the blob
	Target string // symlinks: where it points, as written
}

// Manifest is the tree of one bundle: entries sorted by Path, bytewise, every
// directory explicit. Its encoding is canonical: equal trees have equal bytes.
type Manifest struct {
	Entries []ManifestEntry
}

const (
	manifestMagic = "eboot-manifest 1\n"
	timesMagic    = "eboot-times 1\n"
)

// Sort puts the entries into canonical order.
func (m *Manifest) Sort() {
	slices.SortFunc(m.Entries, func(a, b ManifestEntry) int { return strings.Compare(a.Path, b.Path) })
}

// Encode returns the canonical bytes of m, one line an entry:
//
//	d PATH
//	f SIZE DIGEST PATH      a file
//	x SIZE DIGEST PATH      an executable file
//	l PATH NUL TARGET
//
// with newline and backslash in names written as \n and \\. The entries must
// be sorted and valid; ParseManifest refuses the bytes otherwise.
func (m *Manifest) Encode() []byte {
	size := len(manifestMagic)
	for i := range m.Entries {
		size += len(m.Entries[i].Path) + len(m.Entries[i].Target) + 90
	}
	out := append(make([]byte, 0, size), manifestMagic...)
	for i := range m.Entries {
		e := &m.Entries[i]
		switch e.Kind {
		case KindFile:
			letter := byte('f')
			if e.Exec {
				letter = 'x'
			}
			out = append(out, letter, ' ')
			out = strconv.AppendInt(out, e.Size, 10)
			out = append(out, ' ')
			out = append(out, e.Digest.String()...)
			out = append(out, ' ')
			out = appendEscaped(out, e.Path)
		case KindSymlink:
			out = append(out, 'l', ' ')
			out = appendEscaped(out, e.Path)
			out = append(out, 0)
			out = appendEscaped(out, e.Target)
		default:
			out = append(out, 'd', ' ')
			out = appendEscaped(out, e.Path)
		}
		out = append(out, '\n')
	}
	return out
}

// ParseManifest reads what Encode writes, and nothing else: ErrInvalid or
// ErrTooLarge name the line that is wrong. What it returns is a tree: sorted,
// without duplicates, every parent a directory of it, every path clean.
func ParseManifest(data []byte) (*Manifest, error) {
	if len(data) > MaxManifestSize {
		return nil, fmt.Errorf("manifest: %d bytes, at most %d: %w", len(data), MaxManifestSize, ErrTooLarge)
	}
	rest, ok := bytes.CutPrefix(data, []byte(manifestMagic))
	if !ok {
		return nil, fmt.Errorf("manifest: does not begin with %q: %w", strings.TrimSpace(manifestMagic), ErrInvalid)
	}
	n := bytes.Count(rest, []byte{'\n'})
	if n > MaxTreeEntries {
		return nil, fmt.Errorf("manifest: %d entries, at most %d: %w", n, MaxTreeEntries, ErrTooLarge)
	}
	m := &Manifest{Entries: make([]ManifestEntry, 0, n)}
	for number := 2; len(rest) > 0; number++ {
		line, after, ok := bytes.Cut(rest, []byte{'\n'})
		if !ok {
			return nil, fmt.Errorf("manifest: line %d: is cut off: %w", number, ErrInvalid)
		}
		e, err := parseManifestLine(string(line))
		if err != nil {
			return nil, fmt.Errorf("manifest: line %d: %w", number, err)
		}
		m.Entries = append(m.Entries, e)
		rest = after
	}
	return m, m.Check()
}

func parseManifestLine(line string) (ManifestEntry, error) {
	bad := func(why string) (ManifestEntry, error) {
		return ManifestEntry{}, fmt.Errorf("%q: %s: %w", abbreviate(line), why, ErrInvalid)
	}
	if len(line) < 3 || line[1] != ' ' {
		return bad("want a kind, a space and a path")
	}
	body := line[2:]
	e := ManifestEntry{}
	var ok bool
	switch line[0] {
	case 'd':
		e.Kind = KindDirectory
	case 'f', 'x':
		e.Kind, e.Exec = KindFile, line[0] == 'x'
		sizeText, rest, found := strings.Cut(body, " ")
		if !found || len(rest) < 66 || rest[64] != ' ' {
			return bad("want a size, a digest and a path")
		}
		size, err := strconv.ParseInt(sizeText, 10, 64)
		if err != nil || size < 0 || strconv.FormatInt(size, 10) != sizeText {
			return bad("bad size")
		}
		if e.Digest, err = ParseDigest(rest[:64]); err != nil {
			return ManifestEntry{}, err
		}
		e.Size, body = size, rest[65:]
	case 'l':
		e.Kind = KindSymlink
		p, target, found := strings.Cut(body, "\x00")
		if !found {
			return bad("symlink without a target")
		}
		if e.Target, ok = unescape(target); !ok {
			return bad("bad escape")
		}
		body = p
	default:
		return bad("unknown kind")
	}
	if e.Path, ok = unescape(body); !ok {
		return bad("bad escape")
	}
	return e, nil
}

// Check reports whether m is a tree that may be published: see ParseManifest.
func (m *Manifest) Check() error {
	if len(m.Entries) > MaxTreeEntries {
		return fmt.Errorf("manifest: %d entries, at most %d: %w", len(m.Entries), MaxTreeEntries, ErrTooLarge)
	}
	directories := map[string]bool{".": true}
	var total int64
	for i := range m.Entries {
		e := &m.Entries[i]
		if err := CheckTreePath(e.Path); err != nil {
			return err
		}
		if i > 0 && m.Entries[i-1].Path >= e.Path {
			return fmt.Errorf("path %q: stands twice or out of order: %w", abbreviate(e.Path), ErrInvalid)
		}
		if !directories[path.Dir(e.Path)] {
			return fmt.Errorf("path %q: its parent is not a directory of the tree: %w", abbreviate(e.Path), ErrInvalid)
		}
		switch e.Kind {
		case KindDirectory:
			directories[e.Path] = true
		case KindFile:
			if e.Size < 0 || e.Size > MaxFileSize {
				return fmt.Errorf("path %q: %d bytes, at most %d: %w", abbreviate(e.Path), e.Size, int64(MaxFileSize), ErrTooLarge)
			}
			if e.Digest.IsZero() {
				return fmt.Errorf("path %q: has no digest: %w", abbreviate(e.Path), ErrInvalid)
			}
			if total += e.Size; total > MaxTreeBytes {
				return fmt.Errorf("path %q: the tree passes %d bytes here: %w", abbreviate(e.Path), int64(MaxTreeBytes), ErrTooLarge)
			}
		case KindSymlink:
			if e.Target == "" || len(e.Target) > MaxPathLength || !utf8.ValidString(e.Target) || strings.IndexByte(e.Target, 0) >= 0 {
				return fmt.Errorf("path %q: bad link target %q: %w", abbreviate(e.Path), abbreviate(e.Target), ErrInvalid)
			}
		default:
			return fmt.Errorf("path %q: unknown kind %q: %w", abbreviate(e.Path), e.Kind, ErrInvalid)
		}
	}
	return nil
}

// IsSecretPath reports whether p holds an Erlang cookie: the secret of the
// releases, in a tree or in a directory of it, and that of a user. Neither is ever
// taken into a bundle.
func IsSecretPath(p string) bool {
	return p == "releases/COOKIE" || strings.HasSuffix(p, "/releases/COOKIE") || path.Base(p) == ".erlang.cookie"
}

// CheckTreePath reports whether p may name an entry of a tree: relative,
// clean, valid UTF-8, no NUL, not a secret.
func CheckTreePath(p string) error {
	var why string
	switch {
	case p == "" || p == ".":
		why = "is empty"
	case len(p) > MaxPathLength:
		return fmt.Errorf("path %q: longer than %d bytes: %w", abbreviate(p), MaxPathLength, ErrTooLarge)
	case p[0] == '/':
		why = "is absolute"
	case p == ".." || strings.HasPrefix(p, "../"):
		why = "leaves the tree"
	case path.Clean(p) != p:
		why = "is not clean"
	case !utf8.ValidString(p):
		why = "is not valid UTF-8"
	case strings.IndexByte(p, 0) >= 0:
		why = "has a NUL byte"
	case IsSecretPath(p):
		why = "is a secret and never taken into a bundle"
	default:
		return nil
	}
	return fmt.Errorf("path %q: %s: %w", abbreviate(p), why, ErrInvalid)
}

// Totals returns the number of regular files and the sum of their sizes.
func (m *Manifest) Totals() (files int, size int64) {
	for i := range m.Entries {
		if m.Entries[i].Kind == KindFile {
			files++
			size += m.Entries[i].Size
		}
	}
	return files, size
}

// Find returns the entry at path p, or nil.
func (m *Manifest) Find(p string) *ManifestEntry {
	i, ok := slices.BinarySearchFunc(m.Entries, p, func(e ManifestEntry, p string) int { return strings.Compare(e.Path, p) })
	if !ok {
		return nil
	}
	return &m.Entries[i]
}

// EncodeTimes writes the modification times of a manifest's entries: seconds
// since 1970, in the order of the entries, one a line.
func EncodeTimes(times []int64) []byte {
	out := append(make([]byte, 0, len(timesMagic)+11*len(times)), timesMagic...)
	for _, t := range times {
		out = strconv.AppendInt(out, t, 10)
		out = append(out, '\n')
	}
	return out
}

// ParseTimes reads what EncodeTimes writes for a manifest of n entries.
func ParseTimes(data []byte, n int) ([]int64, error) {
	rest, ok := strings.CutPrefix(string(data), timesMagic)
	if !ok {
		return nil, fmt.Errorf("times: do not begin with %q: %w", strings.TrimSpace(timesMagic), ErrInvalid)
	}
	if lines := strings.Count(rest, "\n"); lines != n {
		return nil, fmt.Errorf("times: %d of them for %d entries: %w", lines, n, ErrInvalid)
	}
	times := make([]int64, n)
	for i := range times {
		line, after, _ := strings.Cut(rest, "\n")
		t, err := strconv.ParseInt(line, 10, 64)
		if err != nil || strconv.FormatInt(t, 10) != line {
			return nil, fmt.Errorf("times: line %d: bad number %q: %w", i+2, abbreviate(line), ErrInvalid)
		}
		times[i], rest = t, after
	}
	if rest != "" {
		return nil, fmt.Errorf("times: last line is cut off: %w", ErrInvalid)
	}
	return times, nil
}

func appendEscaped(out []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\n':
			out = append(out, '\\', 'n')
		case '\\':
			out = append(out, '\\', '\\')
		default:
			out = append(out, s[i])
		}
	}
	return out
}

func unescape(s string) (string, bool) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, true
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		if i++; i == len(s) {
			return "", false
		}
		switch s[i] {
		case 'n':
			out = append(out, '\n')
		case '\\':
			out = append(out, '\\')
		default:
			return "", false
		}
	}
	return string(out), true
}
