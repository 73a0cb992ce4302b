# vmjob KVM probe: a tiny 64-bit guest (PVH ELF, one flat file, no firmware calls).
# Serial 0x3f8 gets one letter per finished stage, then "VMJOB-PROBE-OK\n";
# isa-debug-exit at 0xf4: 0x2a = success (QEMU exits 85),
#                         0x10+stage = stage failed (QEMU exits 33+2*stage),
#   (the text decides; without isa-debug-exit the guest ends by triple fault, status 0)
#                         0x40|vector  = unexpected exception (QEMU exits 129+2*vector).
# build: see probe_guest.py
        .set BASE, 0x100000
        .set PML4, 0x200000
        .set PDPT, 0x201000
        .set PD0,  0x202000          # 0..1 GiB      (2 MiB pages, user)
        .set PD1,  0x203000          # 1..2 GiB      (filled by #PF)
        .set PD3,  0x204000          # 3..4 GiB      (LAPIC)
        .set PT1,  0x205000          # 4 KiB pages of the demand-mapped 2 MiB at 1 GiB
        .set IDT,  0x206000
        .set STACK,0x208000          # top
        .set PHYS, 0x400000          # backing of the demand-mapped pages
        .set TOUCH,0x800000          # 16 MiB touched page by page
#ifndef ITER
#define ITER 40000000
#endif
        .text
        .code32
hdr:    .byte 0x7f,'E','L','F',2,1,1,0, 0,0,0,0,0,0,0,0
        .short 2, 62                 # ET_EXEC, x86-64
        .long 1
        .quad BASE+start-hdr         # e_entry
        .quad ph-hdr, 0
        .long 0
        .short 64,56,2,64,0,0
ph:     .long 1, 7                   # PT_LOAD rwx, whole file
        .quad 0, BASE, BASE, end-hdr, end-hdr, 0x1000
        .long 4, 4                   # PT_NOTE
        .quad note-hdr, BASE+note-hdr, BASE+note-hdr, note_end-note, note_end-note, 4
note:   .long 4, 4, 18               # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long BASE+start-hdr
note_end:

        .macro putc c                # stage letter; also the stage number in bpl
        movw $0x3f8,%dx
        movb $\c,%al
        outb %al,%dx
        incl %ebp
        .endm

start:  cli
        cld
        movl $STACK,%esp
        xorl %ebp,%ebp
        movb $0xff,%al               # mask both PICs: firmware may have left IRQ0 on
        outb %al,$0x21
        outb %al,$0xa1
        putc 'A'                     # A: 32-bit protected mode
# --- page tables
        movl $PML4,%edi
        movl $0x2000,%ecx
        xorl %eax,%eax
        rep stosl
        movl $PDPT+7,PML4
        movl $PD0+7,PDPT
        movl $PD1+7,PDPT+8
        movl $PD3+7,PDPT+24
        movl $PT1+7,PD1
        movl $0x87,%eax
        xorl %ecx,%ecx
1:      movl %eax,PD0(,%ecx,8)
        addl $0x200000,%eax
        incl %ecx
        cmpl $512,%ecx
        jb 1b
        movl $0xfee0009b,PD3+8*(0x3ee00000>>21)   # 0xfee00000, PCD|PWT
        movl %cr4,%eax
        orl $0x620,%eax              # PAE, OSFXSR, OSXMMEXCPT
        movl %eax,%cr4
        movl $PML4,%eax
        movl %eax,%cr3
        movl $0xc0000080,%ecx
        rdmsr
        orl $0x101,%eax              # SCE, LME
        wrmsr
        lgdt BASE+gdtr-hdr
        movl %cr0,%eax
        andl $0xfffffffb,%eax        # EM off
        orl $0x80010003,%eax         # PG, WP, MP, PE
        movl %eax,%cr0
        ljmp $8,$BASE+long-hdr
        .code64
long:   movl $16,%eax
        movl %eax,%ds
        movl %eax,%es
        movl %eax,%ss
        putc 'B'                     # B: long mode with paging
# --- IDT: 0x00..0x1f -> bad_N stubs, then 3, 6, 14, 0x40
        movl $BASE+stubs-hdr,%eax
        movl $IDT,%edi
        movl $32,%ecx
1:      call gate
        addl $16,%edi
        addl $4,%eax
        loop 1b
        movl $BASE+h_bp-hdr,%eax
        movl $IDT+3*16,%edi
        call gate
        movl $BASE+h_ud-hdr,%eax
        movl $IDT+6*16,%edi
        call gate
        movl $BASE+h_pf-hdr,%eax
        movl $IDT+14*16,%edi
        call gate
        movl $BASE+h_tick-hdr,%eax
        movl $IDT+0x40*16,%edi
        call gate
        lidt idtr(%rip)
        xorl %ebx,%ebx
        int3                         # trap: rbx=1
        cmpl $1,%ebx
        jne fail
        putc 'C'                     # C: int3
        ud2                          # fault: handler skips it, rbx=2
        cmpl $2,%ebx
        jne fail
        putc 'D'                     # D: #UD
# --- #PF: 64 pages mapped on demand, two aliases must agree
        movl $0x40000000,%edi
        movl $64,%ecx
1:      movl %edi,(%rdi)
        addl $4096,%edi
        loop 1b
        cmpl $66,%ebx                # 64 faults, one for each page
        jne fail
        cmpl $0x4003f000,PHYS+63*4096
        jne fail
        movl $PT1,%edi               # unmap the first page; after invlpg it faults again
        movl $0,(%rdi)
        movl $0x40000000,%edi
        invlpg (%rdi)
        cmpl %edi,(%rdi)
        jne fail
        cmpl $67,%ebx
        jne fail
        movl $TOUCH,%edi             # 16 MiB, page by page
        movl $4096,%ecx
1:      lock xaddq %rdi,(%rdi)
        movl $TOUCH,%edi
        movl %ecx,%eax
        shll $12,%eax
        addl %eax,%edi
        loop 1b
        putc 'E'                     # E: #PF, invlpg, memory
# --- cpuid, MSRs, SSE, ring 3 and back by syscall/sysret
        movl $0x80000001,%eax
        pushq %rbx
        cpuid
        popq %rbx
        btl $29,%edx                 # LM
        jnc fail
        movl $0xc0000081,%ecx        # STAR: kernel cs 8, sysret base 0x18
        xorl %eax,%eax
        movl $0x00180008,%edx
        wrmsr
        incl %ecx                    # LSTAR
        movl $BASE+sysent-hdr,%eax
        xorl %edx,%edx
        wrmsr
        rdmsr
        cmpl $BASE+sysent-hdr,%eax
        jne fail
        movl $0xc0000084,%ecx        # SFMASK
        movl $0x47700,%eax
        xorl %edx,%edx
        wrmsr
        movl $0xc0000101,%ecx        # GS_BASE
        movl $PHYS,%eax
        wrmsr
        cmpl $0x40000000,%gs:0
        jne fail
        movq %rsp,%xmm0
        pxor %xmm1,%xmm1
        movaps %xmm0,%xmm1
        movq %xmm1,%rax
        cmpq %rax,%rsp
        jne fail
        putc 'F'                     # F: cpuid, MSRs, SSE
        movl $BASE+user-hdr,%ecx
        movl $2,%r11d                # user's flags
        sysretq
user:   movl %cs,%ebx                # ring 3
        syscall
sysent: andl $3,%ebx
        cmpl $3,%ebx
        jne fail
        movl %cs,%ebx
        testl $3,%ebx
        jnz fail
        movl $16,%ebx
        movl %ebx,%ss
        putc 'G'                     # G: ring 3 and syscall
# --- local APIC timer, three periodic ticks of ~1 ms, sleeping in hlt
        xorl %ebx,%ebx
        movl $0xfee00000,%edi
        movl $0x1ff,0xf0(%rdi)       # SVR: on
        movl $0,0x80(%rdi)           # TPR
        movl $0xb,0x3e0(%rdi)        # divide by 1
        movl $0x20040,0x320(%rdi)    # LVT timer: periodic, vector 0x40
        movl $1000000,0x380(%rdi)
1:      sti
        hlt
        cli
        cmpl $3,%ebx
        jb 1b
        movl $0x10000,0x320(%rdi)    # masked
        movl $0,0x380(%rdi)
        putc 'H'                     # H: timer interrupts, hlt
# --- speed: must run at the processor's pace, not an emulator's
        movl $ITER,%ecx
1:      addq %rcx,%rax
        decl %ecx
        jnz 1b
        putc 'I'                     # I: speed
        leaq msg(%rip),%rsi
        movl $msg_end-msg,%ecx
        movw $0x3f8,%dx
2:      lodsb
        outb %al,%dx
        loop 2b
        movb $0x2a,%al
        jmp quit
fail:   leal 0x11(%rbp),%eax         # the stage that was under way: A=1, B=2, ...
quit:   outb %al,$0xf4
        pushq $0                     # no isa-debug-exit: triple fault, which with
        pushq $0                     # -no-reboot ends QEMU too (status 0; the text decides)
        lidt (%rsp)
        int3

gate:   movw %ax,(%rdi)              # eax -> handler, edi -> IDT entry
        movw $8,2(%rdi)
        movl %eax,4(%rdi)
        movw $0x8e00,4(%rdi)
        movq $0,8(%rdi)
        ret
stubs:
        .set n, 0
        .rept 32                     # 4 bytes each: push $n; jmp bad_s
        .byte 0x6a, n, 0xeb, 124-4*n
        .set n, n+1
        .endr
bad_s:  popq %rax
        orb $0x40,%al
        jmp quit
h_bp:   incl %ebx
        iretq
h_ud:   incl %ebx
        addq $2,(%rsp)
        iretq
h_pf:   pushq %rax
        pushq %rdx
        incl %ebx
        movq %cr2,%rax
        movl %eax,%edx
        shrl $30,%edx
        decl %edx
        jnz pf_bad                   # only 1..2 GiB is ours
        shrl $12,%eax
        andl $511,%eax
        movl %eax,%edx
        shll $12,%edx
        addl $PHYS+3,%edx
        movl %edx,PT1(,%rax,8)
        popq %rdx
        popq %rax
        addq $8,%rsp                 # error code
        iretq
pf_bad: movb $0x4e,%al
        jmp quit
h_tick: incl %ebx
        movl $0,0xb0(%rdi)           # EOI
        iretq

        .balign 8
gdt:    .quad 0
        .quad 0x00af9b000000ffff     # 08 kernel code 64
        .quad 0x00cf93000000ffff     # 10 kernel data
        .quad 0x00cffb000000ffff     # 18 user code 32 (sysret base)
        .quad 0x00cff3000000ffff     # 20 user data
        .quad 0x00affb000000ffff     # 28 user code 64
gdtr:   .short gdtr-gdt-1
        .long BASE+gdt-hdr, 0
idtr:   .short 0x41*16-1
        .quad IDT
msg:    .ascii "VMJOB-PROBE-OK\n"
msg_end:
end:
