package bench

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

const (
	bigFileSize    = 100 << 20
	bigFileReaders = 20

	// sendfileVariable makes the test binary a plain sendfile server of the file it names.
	sendfileVariable = "EBOOT_BENCH_SENDFILE"
)

// serveFile is the reference for big files: each connection that sends one byte gets
// the file, by sendfile(2). It prints its port and ends when its standard input does.
func serveFile(path string) error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			file, err := os.Open(path)
			if err != nil {
				return
			}
			defer func() { _ = file.Close() }()
			if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
				_, _ = io.Copy(conn, file)
			}
		}()
	}
}

func startSendfile(tb testing.TB, path string) target {
	tb.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), sendfileVariable+"="+path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatalf("sendfile server: %v", err)
	}
	address := "127.0.0.1:" + strings.TrimSpace(line)
	return target{name: "sendfile", pids: []int{cmd.Process.Pid}, dial: func() (net.Conn, error) { return net.DialTimeout("tcp4", address, time.Minute) }}
}

// readAll lets bigFileReaders connections send request and take size bytes each.
func readAll(tb testing.TB, server target, request []byte, size int64) (elapsed, cpu time.Duration) {
	tb.Helper()
	conns := make([]net.Conn, bigFileReaders)
	for i := range conns {
		conn, err := server.dial()
		if err != nil {
			tb.Fatalf("%s: %v", server.name, err)
		}
		defer func() { _ = conn.Close() }()
		conns[i] = conn
	}
	used := cpuTime(tb, server.pids...)
	began := time.Now()
	var readers sync.WaitGroup
	errs := make([]error, len(conns))
	for i, conn := range conns {
		readers.Go(func() {
			if _, errs[i] = conn.Write(request); errs[i] == nil {
				errs[i] = drain(conn, size, make([]byte, 256<<10))
			}
		})
	}
	readers.Wait()
	elapsed = time.Since(began)
	for _, err := range errs {
		if err != nil {
			tb.Fatalf("%s: %v", server.name, err)
		}
	}
	return elapsed, cpuTime(tb, server.pids...) - used
}

// bigTree makes a tree with one big file that eboot takes as a bundle.
func bigTree(tb testing.TB, erl testutil.Erlang) (root, file string) {
	tb.Helper()
	root = newDir(tb)
	bootable(tb, erl, root)
	file = filepath.Join(root, "lib", "big")
	content := make([]byte, bigFileSize)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(content)
	writeFile(tb, file, content)
	return root, file
}

// bootable puts what a bundle needs below root: a boot script.
func bootable(tb testing.TB, erl testutil.Erlang, root string) {
	tb.Helper()
	script, err := os.ReadFile(erl.BootScript())
	if err != nil {
		tb.Fatal(err)
	}
	writeFile(tb, filepath.Join(root, "bin", "start.boot"), script)
}

func writeFile(tb testing.TB, path string, content []byte) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		tb.Fatal(err)
	}
}

// replySize is the size of the whole reply to request, header included, which depends
// on how a server encodes atoms.
func replySize(tb testing.TB, server target, request []byte) int64 {
	tb.Helper()
	conn, err := server.dial()
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(request); err != nil {
		tb.Fatal(err)
	}
	var header [4]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		tb.Fatalf("%s: %v", server.name, err)
	}
	size := int64(binary.BigEndian.Uint32(header[:]))
	if size < bigFileSize {
		tb.Fatalf("%s: reply of %d bytes to the request for a file of %d", server.name, size, bigFileSize)
	}
	if err := drain(conn, size, make([]byte, 256<<10)); err != nil {
		tb.Fatalf("%s: %v", server.name, err)
	}
	return 4 + size
}

// BenchmarkBigFile: one file of 100 MiB to 20 readers, beside plain sendfile.
func BenchmarkBigFile(b *testing.B) {
	erl := testutil.RequireErl(b)
	root, file := bigTree(b, erl)
	s := startServer(b, serverOptions{Roots: []string{root}})
	s.publish("big", "1", root, "--erts", erl.ERTS, "--channel", eboot.DefaultChannel)
	own, plain, reference := s.target(erl, "127.0.0.1"), startSendfile(b, file), referenceTarget(b, erl)
	request := testutil.Frame(testutil.Encode(testutil.Tuple{testutil.Atom("get"), testutil.Text(file)}))
	size, referenceSize := replySize(b, own, request), replySize(b, reference, request)
	var rate, plainRate, referenceRate, cpu, plainCPU tally
	round := 0
	for b.Loop() {
		const bytes = bigFileReaders * bigFileSize
		inTurn(round, func() {
			elapsed, used := readAll(b, own, request, size)
			rate.add(bytes, elapsed.Seconds())
			cpu.add(used.Seconds(), bytes)
		}, func() {
			elapsed, used := readAll(b, plain, []byte{0}, bigFileSize)
			plainRate.add(bytes, elapsed.Seconds())
			plainCPU.add(used.Seconds(), bytes)
		})
		if round == 0 { // it takes long, and the whole file in memory for each reader
			elapsed, _ := readAll(b, reference, request, referenceSize)
			referenceRate.add(bytes, elapsed.Seconds())
		}
		round++
	}
	compared := rate.over(plainRate)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(compared.total, "rate/sendfile")
	summary.atLeast("100 MiB to 20 readers: rate, eboot/sendfile", compared.total, 0.8, "≥ 0.8",
		fmt.Sprintf("%s: %.0f and %.0f MiB/s", compared, mebibytes(int64(rate.value())), mebibytes(int64(plainRate.value()))))
	summary.note("  CPU of the server, eboot/sendfile", cpu.over(plainCPU).String())
	summary.note("  OTP's rate", fmt.Sprintf("%.0f MiB/s", mebibytes(int64(referenceRate.value()))))
}
