// A client of the real go-runc library (containerd's), as shims and other programs are: every call that
// it has, on one runtime. `go-runc RUNTIME STATE-ROOT BUNDLE ID`; the bundle's program sleeps.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	runc "github.com/containerd/go-runc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var (
	ctx    = context.Background()
	rt     *runc.Runc
	bundle string
	id     string
	failed int
)

// check runs one step; whatever becomes of it, the next one follows.
func check(name string, step func() error) {
	err := step()
	verdict := "ok"
	if err != nil {
		verdict = "FAILED: " + err.Error()
		failed++
	}
	fmt.Printf("go-runc: %s: %s ... %s\n", filepath.Base(rt.Root), name, verdict)
}

func want(what string, got, wanted interface{}) error {
	if fmt.Sprint(got) != fmt.Sprint(wanted) {
		return fmt.Errorf("%s is %v, not %v", what, got, wanted)
	}
	return nil
}

func mustFail(err error, words ...string) error {
	if err == nil {
		return errors.New("this should have failed")
	}
	for _, word := range words {
		if strings.Contains(err.Error(), word) {
			return nil
		}
	}
	return fmt.Errorf("none of %q in: %v", words, err)
}

func status(wanted string) error {
	c, err := rt.State(ctx, id)
	if err != nil {
		return err
	}
	return want("status", c.Status, wanted)
}

func waitFor(wanted string) error {
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = status(wanted); err == nil {
			return nil
		}
	}
	return err
}

func process(args ...string) specs.Process {
	return specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
}

// said is a process's output through pipes, and how the call ended.
func said(call func(runc.IO) error) (string, error) {
	streams, err := runc.NewPipeIO(0, 0)
	if err != nil {
		return "", err
	}
	defer streams.Close()
	text := make(chan string)
	go func() {
		var b bytes.Buffer
		io.Copy(&b, streams.Stdout())
		text <- b.String()
	}()
	err = call(streams)
	if c, ok := streams.(runc.StartCloser); ok {
		c.CloseAfterStart()
	}
	return <-text, err
}

// stats repeats what fails by a race of the library's own: it waits for the command while it reads its pipe.
func stats() (s *runc.Stats, err error) {
	for i := 0; i < 5; i++ {
		if s, err = rt.Stats(ctx, id); err == nil || !strings.Contains(err.Error(), "already closed") {
			break
		}
	}
	return s, err
}

func pidIn(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(text))
}

func main() {
	rt = &runc.Runc{
		Command: os.Args[1], Root: os.Args[2], Log: filepath.Join(os.Args[3], "go-runc.log"), LogFormat: runc.JSON,
		PdeathSignal: syscall.SIGKILL, Setpgid: true,
	}
	bundle, id = os.Args[3], os.Args[4]
	os.Setenv("XDG_RUNTIME_DIR", bundle)
	check("version", func() error {
		v, err := rt.Version(ctx)
		if err == nil && (v.Runc == "" || v.Commit == "" || v.Spec == "") {
			err = fmt.Errorf("incomplete: %+v", v)
		}
		return err
	})
	check("an empty list", func() error {
		list, err := rt.List(ctx)
		if err != nil {
			return err
		}
		return want("containers", len(list), 0)
	})
	check("state of no container", func() error {
		_, err := rt.State(ctx, id)
		return mustFail(err, "does not exist")
	})
	created()
	running()
	streams()
	limits()
	stopped()
	check("run to the end", runToTheEnd)
	check("the log is JSON lines", theLog)
	if failed > 0 {
		rt.Delete(ctx, id, &runc.DeleteOpts{Force: true})
		os.Exit(1)
	}
}

func created() {
	pidFile := filepath.Join(bundle, "go-runc.pid")
	null, err := runc.NewNullIO()
	if err != nil {
		panic(err)
	}
	defer null.Close()
	check("create", func() error {
		return rt.Create(ctx, id, bundle, &runc.CreateOpts{IO: null, PidFile: pidFile, NoNewKeyring: true})
	})
	check("state: created", func() error {
		c, err := rt.State(ctx, id)
		if err != nil {
			return err
		}
		pid, err := pidIn(pidFile)
		if err != nil {
			return err
		}
		if c.Created.IsZero() || c.Rootfs == "" {
			return fmt.Errorf("incomplete: %+v", c)
		}
		return want("id, pid, status, bundle", []interface{}{c.ID, c.Pid, c.Status, c.Bundle},
			[]interface{}{id, pid, "created", bundle})
	})
	check("create again", func() error {
		return mustFail(rt.Create(ctx, id, bundle, &runc.CreateOpts{}), "already exists")
	})
}

func running() {
	check("start", func() error { return rt.Start(ctx, id) })
	check("start again", func() error {
		return mustFail(rt.Start(ctx, id), "cannot start an already running container")
	})
	check("list", func() error {
		list, err := rt.List(ctx)
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].ID != id || list[0].Status != "running" {
			return fmt.Errorf("%d entries: %+v", len(list), list)
		}
		return nil
	})
	check("ps", func() error {
		pids, err := rt.Ps(ctx, id)
		if err != nil {
			return err
		}
		c, err := rt.State(ctx, id)
		if err != nil {
			return err
		}
		return want("pids", pids, []int{c.Pid})
	})
	check("top", func() error {
		top, err := rt.Top(ctx, id, "-ef")
		if err != nil {
			return err
		}
		return want("processes and columns", []int{len(top.Processes), len(top.Headers)}, []int{1, 8})
	})
	check("pause and resume", func() error {
		for _, step := range []func() error{
			func() error { return rt.Pause(ctx, id) },
			func() error { return status("paused") },
			func() error {
				return mustFail(rt.Exec(ctx, id, process("/bin/true"), &runc.ExecOpts{}), "paused container")
			},
			func() error { return rt.Resume(ctx, id) },
			func() error { return status("running") },
			func() error { return mustFail(rt.Resume(ctx, id), "not paused") },
		} {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	check("delete of a running one", func() error {
		return mustFail(rt.Delete(ctx, id, nil), "not stopped: running")
	})
	check("checkpoint", func() error { // no CRIU here, or refused
		return mustFail(rt.Checkpoint(ctx, id, &runc.CheckpointOpts{
			ImagePath: filepath.Join(bundle, "image"), WorkDir: filepath.Join(bundle, "work"), FileLocks: true,
		}, runc.LeaveRunning), "checkpoint", "criu")
	})
}

func streams() {
	check("exec", func() error {
		text, err := said(func(s runc.IO) error {
			return rt.Exec(ctx, id, process("/bin/echo", "hello"), &runc.ExecOpts{IO: s})
		})
		if err != nil {
			return err
		}
		return want("output", text, "hello\n")
	})
	check("exec's status", func() error {
		err := rt.Exec(ctx, id, process("/bin/sh", "-c", "exit 9"), &runc.ExecOpts{})
		var exit *runc.ExitError
		if !errors.As(err, &exit) {
			return fmt.Errorf("no status: %v", err)
		}
		return want("status", exit.Status, 9)
	})
	check("exec of nothing", func() error {
		err := rt.Exec(ctx, id, process("/bin/nothing"), &runc.ExecOpts{})
		return mustFail(err, "no such file or directory")
	})
	check("exec detached", func() error {
		pidFile := filepath.Join(bundle, "go-runc-exec.pid")
		started := make(chan int, 1)
		null, err := runc.NewNullIO()
		if err != nil {
			return err
		}
		defer null.Close()
		opts := &runc.ExecOpts{IO: null, Detach: true, PidFile: pidFile, Started: started}
		if err := rt.Exec(ctx, id, process("/bin/sleep", "100"), opts); err != nil {
			return err
		}
		if pid := <-started; pid == 0 {
			return errors.New("no pid of the runtime")
		}
		pid, err := pidIn(pidFile)
		if err != nil {
			return err
		}
		defer syscall.Kill(pid, syscall.SIGKILL)
		pids, err := rt.Ps(ctx, id)
		if err != nil {
			return err
		}
		if !strings.Contains(fmt.Sprint(pids), strconv.Itoa(pid)) {
			return fmt.Errorf("ps %v does not have %d", pids, pid)
		}
		return nil
	})
	check("exec with a console", func() error {
		socket, err := runc.NewTempConsoleSocket()
		if err != nil {
			return err
		}
		defer socket.Close()
		p := process("/bin/sh", "-c", "tty && echo done")
		p.Terminal = true
		if err := rt.Exec(ctx, id, p, &runc.ExecOpts{ConsoleSocket: socket, Detach: true}); err != nil {
			return err
		}
		master, err := socket.ReceiveMaster()
		if err != nil {
			return err
		}
		defer master.Close()
		var text bytes.Buffer
		io.Copy(&text, master) // ends with EIO
		if !strings.Contains(text.String(), "/dev/pts/") || !strings.Contains(text.String(), "done") {
			return fmt.Errorf("the console said %q", text.String())
		}
		return nil
	})
}

func limits() {
	check("stats", func() error {
		s, err := stats()
		if err != nil {
			return err
		}
		if s == nil || s.Cpu.Usage.Total == 0 || s.Memory.Usage.Usage == 0 || s.Pids.Current == 0 || s.Memory.Raw["rss"]+s.Memory.Raw["anon"] == 0 {
			return fmt.Errorf("incomplete: %+v", s)
		}
		return nil
	})
	check("update", func() error {
		limit := int64(64 << 20)
		err := rt.Update(ctx, id, &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &limit},
			Pids:   &specs.LinuxPids{Limit: 17},
		})
		if err != nil {
			return err
		}
		s, err := stats()
		if err != nil {
			return err
		}
		return want("limits", []uint64{s.Memory.Usage.Limit, s.Pids.Limit}, []uint64{64 << 20, 17})
	})
	check("events", func() error {
		c, cancel := context.WithCancel(ctx)
		defer cancel()
		events, err := rt.Events(c, id, time.Second)
		if err != nil {
			return err
		}
		for i := 0; i < 2; i++ {
			select {
			case e := <-events:
				if e == nil || e.Type != "stats" || e.ID != id || e.Stats.Pids.Current == 0 {
					return fmt.Errorf("event %d: %+v", i, e)
				}
			case <-time.After(20 * time.Second):
				return errors.New("no event")
			}
		}
		return nil
	})
}

func stopped() {
	check("kill 0", func() error { return rt.Kill(ctx, id, 0, nil) })
	check("kill KILL --all", func() error {
		if err := rt.Kill(ctx, id, int(syscall.SIGKILL), &runc.KillOpts{All: true}); err != nil {
			return err
		}
		return waitFor("stopped")
	})
	check("kill of a stopped one", func() error {
		return mustFail(rt.Kill(ctx, id, int(syscall.SIGTERM), nil), "container not running")
	})
	check("delete, and again by force", func() error {
		if err := rt.Delete(ctx, id, nil); err != nil {
			return err
		}
		if err := mustFail(rt.Delete(ctx, id, nil), "does not exist"); err != nil {
			return err
		}
		return rt.Delete(ctx, id, &runc.DeleteOpts{Force: true})
	})
}

func runToTheEnd() error {
	path := filepath.Join(bundle, "config.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config specs.Spec
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	config.Process.Args = []string{"/bin/sh", "-c", "cat <&3; exit 7"}
	if text, err = json.Marshal(&config); err != nil {
		return err
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	extra, err := os.CreateTemp("", "go-runc")
	if err != nil {
		return err
	}
	defer os.Remove(extra.Name())
	extra.WriteString("three")
	extra.Seek(0, io.SeekStart)
	// Run does not pass ExtraFiles on (go-runc 1.0); Create does
	out, err := said(func(s runc.IO) error {
		if err := rt.Create(ctx, id, bundle, &runc.CreateOpts{IO: s, ExtraFiles: []*os.File{extra}}); err != nil {
			return err
		}
		if err := rt.Start(ctx, id); err != nil {
			return err
		}
		return waitFor("stopped")
	})
	if err != nil {
		return err
	}
	if err := want("output", out, "three"); err != nil {
		return err
	}
	if err := rt.Delete(ctx, id, nil); err != nil {
		return err
	}
	config.Process.Args = []string{"/bin/sh", "-c", "exit 7"}
	if text, err = json.Marshal(&config); err != nil {
		return err
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	code, err := rt.Run(ctx, id, bundle, &runc.CreateOpts{})
	if err := want("status", code, 7); err != nil {
		return err
	}
	return mustFail(rt.Start(ctx, id), "does not exist")
}

// theLog holds every error of the calls above, each as one JSON value with a time.
func theLog() error {
	file, err := os.Open(rt.Log)
	if err != nil {
		return err
	}
	defer file.Close()
	errors := 0
	for decoder := json.NewDecoder(file); ; {
		var line struct {
			Level, Msg string
			Time       time.Time
		}
		if err := decoder.Decode(&line); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if line.Level == "error" {
			errors++
		}
	}
	if errors < 8 {
		return fmt.Errorf("%d errors are in the log", errors)
	}
	return nil
}
