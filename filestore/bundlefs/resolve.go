package bundlefs

import (
	"bytes"
	"strings"
	"syscall"

	"eboot"
)

const (
	scratchSize = 512  // names up to this length are normalised without allocating
	maxName     = 255  // NAME_MAX of Linux file systems
	maxPath     = 4096 // PATH_MAX of Linux, with the NUL at the end
	maxLinks    = 40   // MAXSYMLINKS of Linux
)

// found is where a name leads.
type found struct {
	node    uint32
	archive *archive // set: node is an archive and the name leads into it
	member  string   // clean path in the archive; "" is its top
	slash   bool     // the name ended with a slash
	ez      bool     // an error is about what would be the archive
}

// find resolves the name of a request. scratch is memory for the normalised name.
func (t *Tree) find(name, scratch []byte, follow bool) (found, error) {
	if len(name) == 0 {
		return found{}, syscall.ENOENT
	}
	if len(name) >= maxPath {
		return found{}, syscall.ENAMETOOLONG
	}
	if bytes.IndexByte(name, 0) >= 0 {
		return found{}, syscall.EINVAL // OTP's server says badarg, which is no Errno
	}
	rel, slash, ok := t.relative(name, scratch)
	if !ok {
		return found{}, syscall.ENOENT
	}
	i, hit := t.byPath[string(rel)]
	ez := bytes.HasSuffix(rel, ezSuffix)
	if hit && !ez {
		n := &t.nodes[i]
		if n.kind == eboot.KindDirectory || !slash && (n.kind == eboot.KindFile || !follow) {
			return found{node: i}, nil
		}
		i, err := t.walk(string(rel), slash, follow)
		return found{node: i}, err
	}
	if ez || bytes.Contains(rel, ezInside) {
		return t.findArchive(string(rel), slash, follow)
	}
	i, err := t.missing(rel, slash, follow)
	return found{node: i}, err
}

// missing resolves a clean path that is no entry of the manifest as it stands. The
// usual case is a module asked for in a directory that has other modules:
// the second probe finds the directory.
func (t *Tree) missing(rel []byte, slash, follow bool) (uint32, error) {
	for end := len(rel); ; {
		cut := max(bytes.LastIndexByte(rel[:end], '/'), 0)
		i, hit := t.byPath[string(rel[:cut])]
		if !hit {
			end = cut
			continue
		}
		switch t.nodes[i].kind {
		case eboot.KindFile:
			return 0, syscall.ENOTDIR
		case eboot.KindSymlink:
			return t.walk(string(rel), slash, follow)
		}
		if cut > 0 {
			cut++
		}
		if end-cut > maxName {
			return 0, syscall.ENAMETOOLONG
		}
		return 0, syscall.ENOENT
	}
}

// walk resolves a relative path one component after the other, as a kernel does,
// with .. taken from where symlinks have led.
func (t *Tree) walk(rest string, slash, follow bool) (uint32, error) {
	if slash {
		rest += "/"
	}
	here, links := "", 0 // here: a directory of the manifest
	for rest != "" {
		name, after, more := strings.Cut(rest, "/")
		rest = after
		switch name {
		case "", ".":
			continue
		case "..":
			if here == "" {
				return 0, syscall.ENOENT // leaves the tree
			}
			here = here[:max(strings.LastIndexByte(here, '/'), 0)]
			continue
		}
		at := name
		if here != "" {
			at = here + "/" + name
		}
		i, ok := t.byPath[at]
		if !ok {
			if len(name) > maxName {
				return 0, syscall.ENAMETOOLONG
			}
			return 0, syscall.ENOENT
		}
		switch t.nodes[i].kind {
		case eboot.KindDirectory:
			here = at
		case eboot.KindFile:
			if more {
				return 0, syscall.ENOTDIR
			}
			return i, nil
		case eboot.KindSymlink:
			if !more && !follow {
				return i, nil
			}
			if links++; links > maxLinks {
				return 0, syscall.ELOOP
			}
			target := t.links[t.nodes[i].ref]
			if target[0] == '/' {
				rel, slash, ok := t.relative([]byte(target), nil)
				if !ok {
					return 0, syscall.ENOENT // leaves the tree
				}
				here, target = "", string(rel)
				if slash {
					target += "/"
				}
			}
			if rest = target; more {
				rest += "/" + after
			}
		}
	}
	return t.byPath[here], nil
}

// relative returns name as a clean path relative to the bundle's root, and
// whether it demands a directory. ok is false when it is below no root. The result
// is part of name or of scratch.
func (t *Tree) relative(name, scratch []byte) (rel []byte, slash, ok bool) {
	if isClean(name) {
		if name[0] != '/' {
			return name, false, true
		}
		rel, ok = t.stripRoot(name)
		return rel, false, ok
	}
	slash = len(name) > 0 && (bytes.HasSuffix(name, slashes[:1]) || bytes.HasSuffix(name, slashDot) || bytes.HasSuffix(name, slashDotDot))
	if len(name) == 0 || name[0] != '/' {
		if rel, ok := normalise(scratch, name); ok {
			return rel, slash, true
		}
		// Above the working directory, and perhaps down into a root again.
		scratch = append(append(scratch, t.first...), '/')
		name = append(scratch, name...)
		scratch = nil
	}
	rel, _ = normalise(append(scratch, '/'), name[1:])
	rel, ok = t.stripRoot(rel)
	return rel, slash, ok
}

var (
	slashes     = []byte("//")
	slashDot    = []byte("/.")
	slashDotDot = []byte("/..")
)

// isClean reports whether name needs no normalising. It may be wrong for a clean
// name that has a component beginning with a dot.
func isClean(name []byte) bool {
	n := len(name)
	return n > 0 && name[0] != '.' && (n == 1 || name[n-1] != '/') &&
		!bytes.Contains(name, slashDot) && !bytes.Contains(name, slashes)
}

// normalise appends to out the components of name without empty ones, "." and
// "..", separated by slashes. When out begins with a slash, ".." at the top is
// dropped, as in "/.."; else it makes ok false.
func normalise(out, name []byte) (_ []byte, ok bool) {
	top := len(out)
	for len(name) > 0 {
		c, rest, _ := bytes.Cut(name, slashes[:1])
		name = rest
		switch {
		case len(c) == 0 || len(c) == 1 && c[0] == '.':
		case len(c) == 2 && c[0] == '.' && c[1] == '.':
			if len(out) == top {
				if top == 0 {
					return nil, false
				}
				continue
			}
			out = out[:max(bytes.LastIndexByte(out, '/'), top)]
		default:
			if len(out) > top {
				out = append(out, '/')
			}
			out = append(out, c...)
		}
	}
	return out, true
}

// stripRoot cuts the longest root off a clean absolute name.
func (t *Tree) stripRoot(name []byte) (rel []byte, ok bool) {
	for _, root := range t.roots {
		if len(name) < len(root) || string(name[:len(root)]) != root {
			continue
		}
		switch rest := name[len(root):]; {
		case len(rest) == 0:
			return rest, true
		case rest[0] == '/':
			return rest[1:], true
		}
	}
	return nil, false
}
