package bootproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"eboot/bootproto/etf"
)

// recorded answers as erl_boot_server did in a recorded run.
type recorded struct {
	t       testing.TB
	replies map[string]message // by operation and name
}

var _ Session = recorded{}

func (r recorded) Admit(netip.Addr) error { return nil }

func (r recorded) Connect(netip.AddrPort, string) (Session, error) { return r, nil }

func (r recorded) reply(op operation, name []byte) (message, string, error) {
	m, ok := r.replies[op.String()+" "+string(name)]
	if !ok {
		r.t.Errorf("%s %q was not recorded", op, name)
		return m, "", errNotNow
	}
	if m.what == "content" {
		return m, "", nil
	}
	text, err := etf.Format(m.bytes)
	if err != nil {
		r.t.Errorf("%s %q: %v", op, name, err)
		return m, "", errNotNow
	}
	if _, reason, failed := strings.Cut(text, ",{error,"); failed {
		for errno := range syscall.Errno(errnos) {
			if posixAtom(errno)+"}}" == reason {
				return m, text, fmt.Errorf("recorded: %w", errno)
			}
		}
		r.t.Errorf("%s %q: no POSIX error: %s", op, name, text)
	}
	return m, text, nil
}

func (r recorded) Get(name []byte) (Content, error) {
	m, _, err := r.reply(opGet, name)
	return Content{Data: make([]byte, m.size)}, err
}

func (r recorded) List(name []byte) ([]string, error) {
	m, _, err := r.reply(opListDir, name)
	if err != nil {
		return nil, err
	}
	return listedNames(r.t, m.bytes), nil
}

func (r recorded) Stat(name []byte, follow bool) (FileInfo, error) {
	op := opReadLinkInfo
	if follow {
		op = opReadFileInfo
	}
	_, text, err := r.reply(op, name)
	if err != nil {
		return FileInfo{}, err
	}
	info := parseInfo(r.t, text)
	mtime, err := time.Parse("{{2006,1,2},{15,4,5}}", info["mtime"])
	if err != nil {
		r.t.Error(err)
	}
	size, err := strconv.ParseInt(info["size"], 10, 64)
	if err != nil {
		r.t.Error(err)
	}
	kind := map[string]FileType{"regular": Regular, "directory": Directory, "symlink": Symlink}[info["type"]]
	return FileInfo{Size: size, Type: kind, Exec: info["mode"] == strconv.Itoa(modeExec), ModTime: mtime.Unix()}, nil
}

func (r recorded) WorkingDirectory() string {
	m := r.replies["get_cwd "]
	d, err := etf.NewDecoder(m.bytes)
	for range 4 { // {get_cwd,{ok,
		if err == nil {
			_, err = d.Next()
		}
	}
	name, nameErr := d.AppendName(nil)
	if err != nil || nameErr != nil {
		r.t.Errorf("get_cwd: %v, %v", err, nameErr)
	}
	return string(name)
}

func (r recorded) Allowed() error { return nil }
func (r recorded) Sent(int)       {}
func (r recorded) Close(error)    {}

// listedNames decodes {list_dir,{ok,Names}}.
func listedNames(t testing.TB, reply []byte) []string {
	t.Helper()
	d, err := etf.NewDecoder(reply)
	var list etf.Token
	for range 5 { // {list_dir,{ok,[
		if err == nil {
			list, err = d.Next()
		}
	}
	var names []string
	for range list.Len {
		name, e := d.AppendName(nil)
		err = errors.Join(err, e)
		names = append(names, string(name))
	}
	if err != nil {
		t.Errorf("% x: %v", reply, err)
	}
	return names
}

const erlangTime = `\{\{\d+,\d+,\d+\},\{\d+,\d+,\d+\}\}`

var infoPattern = regexp.MustCompile(`^\{(?P<op>\w+),\{ok,\{file_info,(?P<size>\d+),(?P<type>\w+),(?P<access>\w+),` +
	`(?P<atime>` + erlangTime + `),(?P<mtime>` + erlangTime + `),(?P<ctime>` + erlangTime + `),` +
	`(?P<mode>\d+),(?P<links>\d+),(?P<major>\d+),(?P<minor>\d+),(?P<inode>\d+),(?P<uid>\d+),(?P<gid>\d+)\}\}\}$`)

func parseInfo(t testing.TB, text string) map[string]string {
	t.Helper()
	match := infoPattern.FindStringSubmatch(text)
	if match == nil {
		t.Fatalf("no file_info: %s", text)
	}
	info := make(map[string]string)
	for i, name := range infoPattern.SubexpNames() {
		info[name] = match[i]
	}
	return info
}

// TestRecordedRuns replays what a stock node asked erl_boot_server, byte by byte,
// and compares the replies as Erlang reads them.
func TestRecordedRuns(t *testing.T) {
	files, err := filepath.Glob("testdata/*.wire")
	if err != nil || len(files) != len(captures) {
		t.Fatalf("%d recorded runs, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { replay(t, readWire(t, file)) })
	}
}

func replay(t *testing.T, messages []message) {
	host := recorded{t: t, replies: make(map[string]message)}
	for i, m := range messages {
		if m.what != "request" {
			continue
		}
		r := parseRequest(m.bytes, nil)
		if r.op >= operations {
			t.Fatalf("% x is %s", m.bytes, r.op)
		}
		if r.fault == faultNone {
			host.replies[r.op.String()+" "+string(r.name)] = messages[i+1]
		}
		// A term of the same meaning, as a newer client writes it.
		again := parseRequest(ask(r.op.String(), string(r.name))[headerSize:], nil)
		bare := r.op == opGetCwd && len(r.name) == 0
		if !bare && (again.op != r.op || again.fault != r.fault || !bytes.Equal(again.name, r.name)) {
			t.Errorf("%+v came back as %+v", r, again)
		}
	}
	_, addr := startFiles(t, FileServerOptions{Host: host})
	conn := dial(t, addr)
	var version []byte
	var request message
	for _, m := range messages {
		switch m.what {
		case "query":
			var ok bool
			if version, ok = parseQuery(m.bytes); !ok {
				t.Fatalf("query %q", m.bytes)
			}
		case "answer":
			if got := appendReply(nil, m.bytes[6], binary.BigEndian.Uint16(m.bytes[7:]), string(version)); !bytes.Equal(got, m.bytes) {
				t.Errorf("answer %q, want %q", got, m.bytes)
			}
		case "request":
			request = m
		case "reply", "content":
			if _, err := conn.Write(packet(request.bytes)); err != nil {
				t.Fatal(err)
			}
			reply, err := readPacket(conn)
			if err != nil {
				t.Fatalf("reply to %q: %v", request.bytes, err)
			}
			compareReplies(t, m, reply)
		default:
			t.Fatalf("a line of %q", m.what)
		}
	}
}

func compareReplies(t *testing.T, want message, reply []byte) {
	t.Helper()
	if want.what == "content" {
		if header := contentHeader(reply); header == 0 || int64(len(reply)-header) != want.size {
			t.Errorf("a reply of %d bytes, want content of %d", len(reply), want.size)
		}
		return
	}
	got, err := etf.Format(reply)
	if err != nil {
		t.Fatal(err)
	}
	text, err := etf.Format(want.bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "file_info,") || !strings.Contains(text, ",{ok,") {
		if got != text {
			t.Errorf("got  %s\nwant %s", got, text)
		}
		return
	}
	mine, theirs := parseInfo(t, got), parseInfo(t, text)
	for field, value := range theirs {
		switch field {
		case "", "access", "atime", "ctime", "links", "major", "minor", "inode", "uid", "gid":
			// A bundle has none of these.
		default:
			if mine[field] != value {
				t.Errorf("%s of %s\nwant %s", field, got, text)
			}
		}
	}
}
