package bootproto

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// benchmarkRequests sends one request again and again over loopback. The client
// shares the processor.
func benchmarkRequests(b *testing.B, files *tree, name string) {
	benchmarkExchange(b, files, name, func(net.Conn) {})
}

// benchmarkExchange begins with a preparation of the connection.
func benchmarkExchange(b *testing.B, files Host, name string, prepare func(net.Conn)) {
	_, addr := startFiles(b, FileServerOptions{Host: files})
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	prepare(conn)
	request := ask("get", name)
	reply := make([]byte, 1<<20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, reply[:headerSize]); err != nil {
			b.Fatal(err)
		}
		n := binary.BigEndian.Uint32(reply)
		if _, err := io.ReadFull(conn, reply[:n]); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(headerSize + n))
	}
}

const benchName = "/usr/lib/erlang/lib/kernel-8.5.3/ebin/application_controller.beam"

func BenchmarkMissingFile(b *testing.B) {
	benchmarkRequests(b, newTree(), benchName)
}

func BenchmarkSmallFile(b *testing.B) {
	files := newTree()
	files.files[benchName] = Content{Data: []byte(strings.Repeat("beam", 3<<10))}
	benchmarkRequests(b, files, benchName)
}

func BenchmarkLargeContentInMemory(b *testing.B) {
	files := newTree()
	files.files[benchName] = Content{Data: []byte(strings.Repeat("beam", 64<<10))}
	benchmarkRequests(b, files, benchName)
}

// BenchmarkPlanStream sends the files of a plan, 140 of 20 KiB, in answer to one request.
func BenchmarkPlanStream(b *testing.B) {
	const count, size = 140, 20 << 10
	files := newExtendedTree()
	content := Content{Data: []byte(strings.Repeat("beam", size/4))}
	files.fetch = func(string, bool) (Content, error) { return content, nil }
	_, addr := startFiles(b, FileServerOptions{Host: files})
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	opensOn(b, conn)
	paths := slices.Repeat([]string{strings.TrimPrefix(benchName, "/usr/lib/erlang/")}, count)
	request := askFetch(paths...)
	length := count*(len(appendFile(nil, []byte(paths[0]), false, size))+size) + len(appendDone(nil, count))
	reply := make([]byte, 256<<10)
	b.SetBytes(int64(length))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		for left := length; left > 0; {
			n, err := conn.Read(reply[:min(len(reply), left)])
			if err != nil {
				b.Fatal(err)
			}
			left -= n
		}
	}
}

// BenchmarkSmallFileOpened is BenchmarkSmallFile of a slave with our loader: what keep-alives
// cost a request.
func BenchmarkSmallFileOpened(b *testing.B) {
	files := newExtendedTree()
	files.files[benchName] = Content{Data: []byte(strings.Repeat("beam", 3<<10))}
	benchmarkExchange(b, files, benchName, func(conn net.Conn) { opensOn(b, conn) })
}

func BenchmarkParseRequest(b *testing.B) {
	frame := ask("get", benchName)[headerSize:]
	name := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		if r := parseRequest(frame, name); r.op != opGet || r.fault != faultNone {
			b.Fatal(r)
		}
	}
}

func BenchmarkAppendInfo(b *testing.B) {
	reply := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		reply = appendInfo(reply[:0], opReadFileInfo, FileInfo{Size: 12345, Type: Regular, ModTime: 1763832896})
	}
}

func BenchmarkAppendNames(b *testing.B) {
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprintf("application_%d.beam", i)
	}
	reply := make([]byte, 0, 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		reply = appendNames(reply[:0], names)
	}
}

// BenchmarkIdleConnection reports the memory of a connection that was used and
// is idle.
func BenchmarkIdleConnection(b *testing.B) {
	const connections = 500
	_, addr := startFiles(b, FileServerOptions{Host: newTree()})
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		conns := make([]net.Conn, connections)
		for i := range conns {
			conns[i] = dial(b, addr)
			exchange(b, conns[i], ask("get", "/bin/start.boot"))
			exchange(b, conns[i], ask("read_file_info", "/bin/start.boot"))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		used := after.HeapInuse + after.StackInuse - before.HeapInuse - before.StackInuse
		b.ReportMetric(float64(used)/connections, "B/connection")
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}
