package testnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"eboot/internal/testutil"
)

// roleVariable makes the test binary a program to run on a host.
const roleVariable = "EBOOT_TEST_TESTNET_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		goleak.VerifyTestMain(m)
	case "echo":
		fmt.Fprintln(os.Stderr, serveEcho())
		os.Exit(1)
	default: // "network": see TestKilledTestLeavesNothing
		os.Exit(m.Run())
	}
}

const echoPort = 7007

// serveEcho sends back what it gets, over TCP and UDP.
func serveEcho() error {
	packets, err := net.ListenUDP("udp4", &net.UDPAddr{Port: echoPort})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", fmt.Sprintf(":%d", echoPort))
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := packets.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	fmt.Println("echo is up")
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() { _, _ = io.Copy(conn, conn) }()
	}
}

// startEcho runs the echo server on the host and waits until it serves.
func startEcho(t *testing.T, h *Host) *Process {
	t.Helper()
	p := h.Start(t, Command{Args: []string{os.Args[0]}, Env: []string{roleVariable + "=echo"}, Name: "echo on " + h.Name})
	waitEcho(t, p, 1)
	return p
}

func waitEcho(t *testing.T, p *Process, runs int) {
	t.Helper()
	testutil.Poll(t, 20*time.Second, "echo server is to be up", func() bool {
		if !p.Running() {
			t.Fatalf("echo server ended: %s", p.Output())
		}
		return strings.Count(p.Output(), "echo is up") == runs
	})
}

// patience is how long a test waits for what is not to come.
const patience = 300 * time.Millisecond

// sendPackets sends n datagrams from one host to the echo server on another and returns
// how many came back.
func sendPackets(t *testing.T, from, to *Host, n int) int {
	t.Helper()
	conn, err := from.Namespace.ListenUDP(from.Address.String() + ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	returned, buf := 0, make([]byte, 64)
	take := func(wait time.Duration) bool {
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		_, _, err := conn.ReadFromUDPAddrPort(buf)
		if err == nil {
			returned++
		}
		return err == nil
	}
	for i := range n {
		if _, err := conn.WriteToUDPAddrPort([]byte(strconv.Itoa(i)), netip.AddrPortFrom(to.Address, echoPort)); err != nil {
			t.Fatal(err)
		}
		if i%16 == 15 { // so that no buffer runs over
			for take(2 * time.Millisecond) {
			}
		}
	}
	for returned < n && take(patience) {
	}
	return returned
}

func reaches(t *testing.T, from, to *Host) bool {
	t.Helper()
	return sendPackets(t, from, to, 1) == 1
}

// dial connects to the echo server; the connection is closed with the test.
func dial(t *testing.T, from, to *Host, timeout time.Duration) (conn net.Conn, err error) {
	t.Helper()
	err = from.Namespace.Do(func() error {
		conn, err = net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", to.Address, echoPort), timeout)
		return err
	})
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, err
}

// echoes sends a line over the connection and waits for it to come back.
func echoes(conn net.Conn, wait time.Duration) bool {
	_ = conn.SetDeadline(time.Now().Add(wait))
	if _, err := conn.Write([]byte("line\n")); err != nil {
		return false
	}
	_, err := io.ReadFull(conn, make([]byte, 5))
	return err == nil
}

func TestNetworkIsFast(t *testing.T) {
	began := time.Now()
	n := New(t, 4)
	took := time.Since(began)
	t.Logf("a network of 4 hosts took %v", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("a network of 4 hosts took %v", took)
	}
	began = time.Now()
	n.Isolate(n.Host(0))
	n.Heal()
	t.Logf("isolating and healing a host took %v", time.Since(began).Round(time.Millisecond))
}

func TestHostsReachEachOther(t *testing.T) {
	n := New(t, 3)
	a, b, c := n.Host(0), n.Host(1), n.Host(2)
	startEcho(t, b)
	conn, err := dial(t, a, b, 5*time.Second)
	if err != nil || !echoes(conn, 5*time.Second) {
		t.Fatalf("TCP from one host to another: %v", err)
	}
	if !reaches(t, a, b) || !reaches(t, c, b) || !reaches(t, b, b) {
		t.Error("UDP from one host to another is not answered")
	}
	if reaches(t, a, c) {
		t.Error("a host without the server answers")
	}
	if n.Lookup(b.Address) != b || n.Lookup(netip.MustParseAddr("10.83.7.99")) != nil {
		t.Error("lookup by address finds the wrong host")
	}

	// All hosts hear a broadcast, as slaves send it with -hosts and a broadcast address.
	startEcho(t, c)
	udp, err := a.Namespace.ListenUDP("0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if _, err := udp.WriteToUDPAddrPort([]byte("all"), netip.AddrPortFrom(netip.MustParseAddr(Broadcast), echoPort)); err != nil {
		t.Fatal(err)
	}
	from := map[netip.Addr]bool{}
	_ = udp.SetReadDeadline(time.Now().Add(5 * time.Second))
	for len(from) < 2 {
		_, sender, err := udp.ReadFromUDPAddrPort(make([]byte, 8))
		if err != nil {
			t.Fatalf("only %v answered a broadcast", from)
		}
		from[sender.Addr().Unmap()] = true
	}
	if !from[b.Address] || !from[c.Address] {
		t.Errorf("a broadcast was answered by %v", from)
	}
}

func TestCutAndHeal(t *testing.T) {
	n := New(t, 3)
	a, b, c := n.Host(0), n.Host(1), n.Host(2)
	startEcho(t, a)
	startEcho(t, b)
	conn, err := dial(t, a, b, 5*time.Second)
	if err != nil || !echoes(conn, 5*time.Second) {
		t.Fatal(err)
	}

	n.Cut(a, b)
	if reaches(t, a, b) || reaches(t, b, a) {
		t.Error("packets pass between hosts that are cut from each other")
	}
	if !reaches(t, c, a) || !reaches(t, c, b) || !reaches(t, a, a) {
		t.Error("the cut between two hosts hit others")
	}
	if _, err := dial(t, a, b, patience); err == nil {
		t.Error("TCP connects across a cut")
	}
	if echoes(conn, patience) {
		t.Error("an open connection works across a cut")
	}
	n.Heal()
	if !reaches(t, a, b) || !reaches(t, b, a) {
		t.Error("hosts do not reach each other after healing")
	}
	// The line that was sent in the cut is sent again by TCP.
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Errorf("the open connection did not survive the cut: %v", err)
	}

	n.Cut(a, b)
	n.Heal(a)
	if !reaches(t, b, a) || !reaches(t, a, b) {
		t.Error("a cut is not healed with one of its ends")
	}
}

// oneWay listens at to and reports whether a datagram from the other host arrives.
func oneWay(t *testing.T, from, to *Host) bool {
	t.Helper()
	listener, err := to.Namespace.ListenUDP(to.Address.String() + ":7008")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	sender, err := from.Namespace.ListenUDP(from.Address.String() + ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	if _, err := sender.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to.Address, 7008)); err != nil {
		t.Fatal(err)
	}
	_ = listener.SetReadDeadline(time.Now().Add(patience))
	_, _, err = listener.ReadFromUDPAddrPort(make([]byte, 8))
	return err == nil
}

func TestCutOneWay(t *testing.T) {
	n := New(t, 2)
	a, b := n.Host(0), n.Host(1)
	n.CutOneWay(a, b)
	if oneWay(t, a, b) {
		t.Error("packets pass in the direction that is cut")
	}
	if !oneWay(t, b, a) {
		t.Error("packets do not pass in the direction that is not cut")
	}
	n.Heal(b)
	if !oneWay(t, a, b) {
		t.Error("packets do not pass after healing")
	}
}

func TestIsolate(t *testing.T) {
	n := New(t, 4)
	a, b, c, d := n.Host(0), n.Host(1), n.Host(2), n.Host(3)
	startEcho(t, b)
	startEcho(t, c)
	n.Isolate(a, b) // against c, d
	if !reaches(t, a, b) || !reaches(t, d, c) {
		t.Error("hosts of one side do not reach each other")
	}
	if reaches(t, a, c) || reaches(t, d, b) {
		t.Error("hosts of two sides reach each other")
	}
	n.Heal()
	if !reaches(t, a, c) || !reaches(t, d, b) {
		t.Error("hosts do not reach each other after healing")
	}
	n.Isolate(c)
	if reaches(t, a, c) || reaches(t, d, c) || !reaches(t, d, b) {
		t.Error("isolating one host: it is reached, or another is not")
	}
}

func TestLoss(t *testing.T) {
	n := New(t, 2)
	a, b := n.Host(0), n.Host(1)
	startEcho(t, b)
	const sent = 2000
	n.Lose(30, b) // on the way there only
	// The standard deviation is 20 packets.
	if got := sendPackets(t, a, b, sent); got < sent*70/100-120 || got > sent*70/100+120 {
		t.Errorf("%d of %d packets were answered with a loss of 30 percent", got, sent)
	} else {
		t.Logf("%d of %d packets were answered with a loss of 30 percent", got, sent)
	}
	n.Lose(100)
	if got := sendPackets(t, a, b, 20); got != 0 {
		t.Errorf("%d packets were answered with a loss of 100 percent", got)
	}
	n.Lose(0)
	if got := sendPackets(t, a, b, 200); got != 200 {
		t.Errorf("%d of 200 packets were answered without loss", got)
	}
}

func TestRejectRefusesTCPAlone(t *testing.T) {
	n := New(t, 2)
	a, b := n.Host(0), n.Host(1)
	startEcho(t, b)
	open, err := dial(t, a, b, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, ports := range [][]uint16{{80, echoPort}, nil} {
		n.Reject(b, ports...)
		if _, err := dial(t, a, b, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("rejecting %v: connect: %v, want a refusal", ports, err)
		}
		if !reaches(t, a, b) {
			t.Errorf("rejecting %v: UDP is not answered", ports)
		}
		if !echoes(open, 5*time.Second) {
			t.Errorf("rejecting %v: a connection that was open does not work", ports)
		}
		if _, err := dial(t, b, b, 5*time.Second); err != nil {
			t.Errorf("rejecting %v: the host itself: %v", ports, err)
		}
		n.Heal()
		if _, err := dial(t, a, b, 5*time.Second); err != nil {
			t.Errorf("after healing: %v", err)
		}
	}
	n.Reject(b, 80)
	if _, err := dial(t, a, b, 5*time.Second); err != nil {
		t.Errorf("rejecting another port: %v", err)
	}
}

func TestChangeAddress(t *testing.T) {
	n := New(t, 3)
	a, b, c := n.Host(0), n.Host(1), n.Host(2)
	startEcho(t, b)
	n.Cut(c, b)
	old := b.Address
	b.ChangeAddress()
	if b.Address == old || n.Lookup(old) != nil {
		t.Fatalf("address is %s, was %s", b.Address, old)
	}
	if !reaches(t, a, b) {
		t.Error("the host is not reached at its new address")
	}
	n.Reject(b)
	if reaches(t, c, b) {
		t.Error("the new address is reached across a cut")
	}
	if out := b.Run("ip", "-brief", "-4", "address", "show", "dev", "eth0"); strings.Contains(out, old.String()+"/") || !strings.Contains(out, b.Address.String()+"/") {
		t.Errorf("addresses of the host: %s", out)
	}
}

func TestProcess(t *testing.T) {
	n := New(t, 2)
	a, b := n.Host(0), n.Host(1)
	p := startEcho(t, b)
	conn, err := dial(t, a, b, 5*time.Second)
	if err != nil || !echoes(conn, 5*time.Second) {
		t.Fatal(err)
	}

	p.Pause()
	if !p.Running() || reaches(t, a, b) || echoes(conn, patience) {
		t.Error("a paused process answers, or counts as ended")
	}
	if _, err := dial(t, a, b, 5*time.Second); err != nil {
		t.Errorf("the kernel does not accept for a paused process: %v", err)
	}
	p.Resume()
	if !reaches(t, a, b) {
		t.Error("a resumed process does not answer")
	}

	pid := p.PID()
	p.Kill()
	if p.Running() || syscall.Kill(pid, 0) == nil {
		t.Error("a killed process runs")
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection to a killed process: %v, want its end", err)
	}
	if _, err := dial(t, a, b, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect to a killed process: %v", err)
	}
	p.Kill() // again: nothing

	p.Restart()
	waitEcho(t, p, 2)
	if p.PID() == pid || !reaches(t, a, b) {
		t.Error("a restarted process does not answer")
	}
	p.Pause()
	p.Restart() // kills the paused one
	waitEcho(t, p, 3)
	if state := p.Term(5 * time.Second); state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("after SIGTERM: %v", state)
	}
	if state := p.Term(5 * time.Second); state == nil {
		t.Error("no state of a process that has ended")
	}

	local := Start(t, Command{Args: []string{"sh", "-c", "echo $WORD; echo error >&2; exit 3"}, Env: []string{"WORD=hello"}})
	if state := local.Wait(5 * time.Second); state.ExitCode() != 3 || local.Output() != "hello\nerror\n" {
		t.Errorf("exit status %d, output %q", state.ExitCode(), local.Output())
	}
}

// A real node on one host boots from OTP's own server on another.
func TestSlaveBootsFromAnotherHost(t *testing.T) {
	erl := testutil.RequireErl(t)
	n := New(t, 2)
	server, slave := n.Host(0), n.Host(1)
	testutil.StartBootServer(t, erl, testutil.BootServerOptions{Namespace: server.Namespace, Whitelist: []string{slave.Address.String()}})
	node := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: []string{server.Address.String()}, Root: erl.Root, Namespace: slave.Namespace})
	report := node.Report(40 * time.Second)
	if len(report.Modules) < 50 {
		t.Errorf("the node reports %d modules", len(report.Modules))
	}
	t.Logf("%d modules in %v", len(report.Modules), report.Took.Round(time.Millisecond))
}

// TestKilledTestLeavesNothing kills a test process that has built a network and runs
// programs on it: they end, and with them the namespaces and their interfaces.
func TestKilledTestLeavesNothing(t *testing.T) {
	testutil.RequireNetwork(t)
	if os.Getenv(roleVariable) == "network" {
		n := New(t, 2)
		for _, h := range n.Hosts() {
			fmt.Printf("sleeper %d\n", h.Start(t, Command{Args: []string{"sleep", "1000"}}).PID())
		}
		fmt.Printf("sleeper %d\n", Start(t, Command{Args: []string{"sleep", "1000"}}).PID())
		fmt.Println("built")
		select {} // until it is killed
	}
	before := interfaces(t)
	// Not through Process: nothing but the kernel may clean up after it.
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledTestLeavesNothing$")
	cmd.Env = append(os.Environ(), roleVariable+"=network")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for {
		var word string
		var pid int
		if _, err := fmt.Fscan(out, &word); err != nil {
			t.Fatalf("the test process ended: %v", err)
		}
		if word == "built" {
			break
		}
		if word == "sleeper" {
			if _, err := fmt.Fscan(out, &pid); err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	if len(pids) != 3 {
		t.Fatalf("sleepers %v, want 3", pids)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	testutil.Poll(t, 10*time.Second, fmt.Sprintf("programs %v of a killed test are to end", pids), func() bool {
		for _, pid := range pids {
			if content, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(content) == "sleep\n" && !zombie(pid) {
				return false
			}
		}
		return true
	})
	if after := interfaces(t); after != before {
		t.Errorf("interfaces of the machine before:\n%s\nafter:\n%s", before, after)
	}
}

// zombie reports whether the process has ended and waits for its new parent to notice.
func zombie(pid int) bool {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || strings.Contains(string(content), "State:\tZ")
}

func interfaces(t *testing.T) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return strings.Join(names, " ")
}
